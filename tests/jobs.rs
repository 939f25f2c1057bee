//! Jobs through the engine: their results, restarts, limits, cancelling, and the removal of old jobs.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tally::{
    engine::{
        Durability, Engine, Job, JobId, JobState,
        group_by::{output::Groups, spec::GroupBy},
        state::{Lane, transfers::Origin},
        storage::{checksums, reader::Reader},
        survey::question::{Ask, SurveyQuestion},
    },
    error::{Error, Kind},
    limits::{JOBS_MAX, JobLimits, Limits},
    model::checksum,
};

use self::common::{DataFolder, TestEngine, survey_question, wait_for, wait_until};

mod common;

const SURVEY: &str = "Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1\n\
                      q,Ohio,1,Income,low\nq,Ohio,2,Income,high\nq,Iowa,4,,\nr,Ohio,9,Income,low\n";
const PLAYS: &str = "Song,Date,Number of Plays\n\"a, b\",2024-01-02,1\nc,2024-01-01,5\n\"a, b\",2024-01-02,10\n";
const HEADER: [&str; 3] = ["Song", "Date", "Total"];

fn with_jobs(jobs: JobLimits) -> Limits {
    Limits { jobs, ..Limits::default() }
}

async fn fresh() -> (DataFolder, TestEngine) {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    (folder, engine)
}

async fn end_of(engine: &Engine, id: JobId) -> Job {
    wait_for("a job ends", || {
        engine.job(id).filter(|job| !matches!(job.state, JobState::Queued | JobState::Running { .. }))
    })
    .await
}

async fn result_of(engine: &Engine, id: JobId) -> String {
    let JobState::Done { bytes } = end_of(engine, id).await.state else {
        panic!("{:?}", engine.job(id));
    };
    let mut file = engine.open_result(id).await.expect("a result");
    assert_eq!(file.bytes(), bytes);
    let mut text = Vec::new();
    while (text.len() as u64) < bytes {
        // In pieces, as the server sends it.
        text.extend_from_slice(&file.read(text.len() as u64, 7, true).await.expect("readable"));
    }
    String::from_utf8(text).expect("text")
}

fn question(ask: Ask, question: &str) -> SurveyQuestion {
    survey_question(ask, question, None)
}

async fn task(engine: &Engine, csv: &str) -> Result<JobId, Error> {
    let blocks: Vec<_> = csv.as_bytes().chunks(5).map(|block| Ok(Bytes::copy_from_slice(block))).collect();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let group = GroupBy::new(names(&["Song", "Date"]), names(&["Number of Plays"])).expect("different columns");
    engine.submit_task(Origin::SERVER, stream::iter(blocks), group, names(&HEADER)).await
}

/// The files in `jobs/`, by name.
fn files(folder: &DataFolder) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder.file("jobs")).expect("readable");
    let named = |path: PathBuf| (path.file_name().expect("a name").to_string_lossy().into_owned(), path);
    entries.map(|entry| named(entry.expect("an entry").path())).collect()
}

/// The suffixes of the files in `jobs/`, in order.
fn kinds(folder: &DataFolder) -> Vec<String> {
    let mut kinds: Vec<_> =
        files(folder).into_keys().map(|name| name.rsplit('.').next().unwrap_or_default().to_owned()).collect();
    kinds.sort();
    kinds
}

fn record(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

#[tokio::test]
async fn a_statistic_is_submitted_and_fetched_later() {
    let (folder, engine) = fresh().await;
    engine.upload_valid(SURVEY).await;
    let means = engine.submit_survey(question(Ask::StatesMean, "q")).await.expect("accepted");
    let unknown = engine.submit_survey(question(Ask::GlobalMean, "nobody asked")).await.expect("accepted");
    assert_eq!((means, unknown), (JobId::Survey(1), JobId::Survey(2)));
    assert_eq!(result_of(&engine, means).await, r#"{"Ohio":1.5,"Iowa":4.0}"#);
    let JobState::Failed { reason } = end_of(&engine, unknown).await.state else { panic!("{:?}", engine.job(unknown)) };
    assert_eq!(*reason, *"no row with a value for question \"nobody asked\"");
    assert_eq!(engine.jobs_undone(), 0);
    assert_eq!(engine.survey_jobs().iter().map(|job| job.id).collect::<Vec<_>>(), [means, unknown]);
    assert_eq!(kinds(&folder), ["json", "json", "result"]);
}

#[tokio::test]
async fn a_file_is_grouped_and_summed() {
    let (folder, engine) = fresh().await;
    let id = task(&engine, PLAYS).await.expect("accepted");
    assert_eq!(result_of(&engine, id).await, "Song,Date,Total\n\"a, b\",2024-01-02,11\nc,2024-01-01,5\n");
    for (csv, expected) in [
        ("Song,Date\na,b\n", "the file has no column \"Number of Plays\""),
        (
            "Song,Date,Number of Plays\na,b,1\na,b,x\n",
            "row 2 (line 3), column \"Number of Plays\": \"x\" is not an integer",
        ),
        ("Song,Date,Number of Plays\na,b\n", "row 1 (line 2) has 2 cells, the header has 3"),
        ("", "the file has no header row"),
    ] {
        let id = task(&engine, csv).await.expect("accepted: the job reports what is wrong");
        assert_eq!(end_of(&engine, id).await.state, JobState::Failed { reason: expected.into() }, "{csv:?}");
    }
    assert!(engine.survey_jobs().is_empty());
    assert_eq!(folder.names_in("tmp").len(), 0, "drafts are left");
}

#[tokio::test]
async fn a_restart_keeps_results_and_runs_unfinished_jobs() {
    let (folder, engine) = fresh().await;
    engine.upload_valid(SURVEY).await;
    let survey = engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("accepted");
    let done = task(&engine, PLAYS).await.expect("accepted");
    let again = task(&engine, PLAYS).await.expect("accepted");
    let lost = task(&engine, PLAYS).await.expect("accepted");
    let cut_off = task(&engine, PLAYS).await.expect("accepted");
    let expected = result_of(&engine, done).await;
    let (mean, _) = (result_of(&engine, survey).await, result_of(&engine, again).await);
    let _ = (result_of(&engine, lost).await, result_of(&engine, cut_off).await);
    drop(engine);

    // The folder as if the server had been killed while it ran `again`, the disk had lost the result of `lost`, and the power had
    // failed when the records of `survey` and `cut_off` were on the disk, and their results were not.
    let path = files(&folder)[&format!("{again}.json")].clone();
    let mut text = record(&path);
    assert_eq!(text["state"]["done"]["bytes"], json!(expected.len()));
    text["state"] = json!("running");
    text.as_object_mut().expect("an object").remove("record_xxh3");
    let input_check = checksum::to_hex(checksums::checksum(PLAYS.as_bytes()));
    assert_eq!(text["input_check"], json!(input_check));
    fs::write(&path, checksums::add_checksum(text.to_string().into_bytes())).expect("writable");
    fs::write(path.with_extension("input"), PLAYS).expect("writable");
    fs::write(path.with_extension("result"), "a result whose record was not written any more").expect("writable");
    for job in [lost, cut_off, survey] {
        fs::remove_file(&files(&folder)[&format!("{job}.result")]).expect("was there");
    }
    fs::write(folder.path().join(format!("jobs/{cut_off}.input")), PLAYS).expect("writable");
    // The input of a job that was not accepted yet.
    fs::write(folder.path().join("jobs/00000000-0000-4000-8000-000000000000.input"), "x").expect("writable");

    let engine = open_again(&folder).await;
    assert_eq!(result_of(&engine, survey).await, mean);
    assert_eq!(result_of(&engine, done).await, expected);
    assert_eq!(result_of(&engine, again).await, expected);
    assert_eq!(result_of(&engine, cut_off).await, expected);
    assert_eq!(end_of(&engine, lost).await.state, JobState::Failed { reason: "its result is gone".into() });
    assert!(!files(&folder).keys().any(|name| name.starts_with("00000000")), "a stray input is left");
    let next = engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("accepted");
    assert_eq!(next, JobId::Survey(2), "numbers continue");
}

/// Starts an engine that syncs, on a folder that had one before.
async fn open_again(folder: &DataFolder) -> TestEngine {
    folder.open_with(Durability::Fsync, Limits::default()).await
}

/// The record of a running job, as it is stored.
fn record_of(id: &str, format: u32, starts: u32) -> String {
    let work = json!({"group_sum": {"by": ["Song"], "sum": ["Number of Plays"], "header": ["Song", "Total"]}});
    let since = "2026-01-01T00:00:00Z";
    json!({"format": format, "id": id, "order": 1, "starts": starts, "work": work, "state": "running", "since": since})
        .to_string()
}

const TASK: &str = "0b5e2c14-6f1a-4a52-9a0e-1f7a4e5b3c2d";

#[tokio::test]
async fn a_damaged_record_is_set_aside_and_a_newer_one_stops_the_start() {
    let folder = DataFolder::new();
    let jobs = folder.file("jobs");
    fs::create_dir(&jobs).expect("writable");
    for (name, text) in [("job_id_7", ""), ("job_id_8", "{"), ("job_id_9", &record_of("job_id_8", 1, 0))] {
        fs::write(jobs.join(format!("{name}.json")), text).expect("writable");
        fs::write(jobs.join(format!("{name}.result")), "1").expect("writable");
    }
    fs::write(jobs.join("stray.result"), "1").expect("writable");
    let newer = checksums::add_checksum(record_of(TASK, 9, 0).into_bytes());
    fs::write(jobs.join(format!("{TASK}.json")), newer).expect("writable");
    let refused = Engine::open(folder.path(), Durability::None, Limits::default()).await.map(|_| ());
    let expected = format!("job {TASK} has format version 9, this program knows 2: use a newer one");
    assert_eq!(refused.expect_err("newer").to_string(), expected);
    assert!(jobs.join("stray.result").exists() && jobs.join("job_id_7.json").exists(), "nothing was changed");

    fs::remove_file(jobs.join(format!("{TASK}.json"))).expect("was there");
    let engine = open_again(&folder).await;
    assert!(engine.survey_jobs().is_empty());
    assert_eq!(files(&folder).len(), 0);
    let aside = || folder.names_in("quarantine").len();
    assert_eq!(aside(), 6, "records and results");
    // The numbers of damaged jobs are not used again, or a client would get the result of another job.
    let ask = async |engine: &Engine| engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("accepted");
    let id = ask(&engine).await;
    assert_eq!(id, JobId::Survey(10));
    end_of(&engine, id).await;
    drop(engine);
    fs::write(jobs.join("job_id_10.json"), "{").expect("writable");
    drop(open_again(&folder).await);
    let engine = open_again(&folder).await;
    assert_eq!((ask(&engine).await, aside()), (JobId::Survey(11), 7));
}

/// A record with the largest number does not keep the server from starting.
#[tokio::test]
async fn a_job_with_the_largest_number_is_set_aside() {
    let folder = DataFolder::new();
    let (jobs, quarantine) = (folder.file("jobs"), folder.file("quarantine"));
    fs::create_dir(&jobs).and_then(|()| fs::create_dir(&quarantine)).expect("writable");
    let last = format!("job_id_{}", u64::MAX);
    fs::write(quarantine.join(format!("{last}.json")), "").expect("writable");
    fs::write(jobs.join(format!("{last}.json")), record_of(&last, 1, 0)).expect("writable");
    let late = record_of(TASK, 1, 0).replace("\"order\":1", &format!("\"order\":{}", u64::MAX));
    fs::write(jobs.join(format!("{TASK}.json")), late).expect("writable");
    let engine = open_again(&folder).await;
    assert!(files(&folder).is_empty(), "both were set aside");
    let id = engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("accepted");
    assert_eq!(id, JobId::Survey(1));
    end_of(&engine, id).await;
}

#[tokio::test]
async fn a_truncated_result_is_an_error() {
    let (folder, engine) = fresh().await;
    let id = task(&engine, PLAYS).await.expect("accepted");
    let whole = result_of(&engine, id).await;
    let path = folder.file("jobs").join(format!("{id}.result"));
    fs::write(&path, &whole[..20]).expect("writable");
    let error = engine.open_result(id).await.err().expect("damaged");
    assert_eq!(error.kind(), Kind::DataLoss);
    let says = format!("job \"{id}\" is damaged: its result has 20 bytes, its record says {}", whole.len());
    assert_eq!(error.to_string(), says);
}

/// Of the known jobs, those without a result make room first.
#[tokio::test]
async fn jobs_that_have_ended_make_room() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    let fetched_late = task(&engine, PLAYS).await.expect("accepted");
    result_of(&engine, fetched_late).await;
    let mut last = 0;
    for _ in 0..JOBS_MAX + 10 {
        let id = engine.submit_survey(question(Ask::GlobalMean, "of no row")).await.expect("there is room");
        let JobId::Survey(number) = id else { panic!("{id} is no statistic") };
        last = number;
        end_of(&engine, id).await;
    }
    let known = engine.survey_jobs();
    assert!(known.len() < JOBS_MAX && known.len() > JOBS_MAX - 100, "{} are known", known.len());
    assert_eq!(known.last().map(|job| job.id), Some(JobId::Survey(last)));
    assert!(engine.job(JobId::Survey(1)).is_none(), "the oldest has made room");
    assert!(result_of(&engine, fetched_late).await.starts_with("Song,Date,Total\n"));
    drop(engine);

    // Old jobs are removed too. The newest one stays, or its number would be used again.
    let limits =
        JobLimits { age_max: Duration::ZERO, sweep_interval: Duration::from_millis(5), ..JobLimits::default() };
    let engine = folder.open_with(Durability::Fsync, with_jobs(limits)).await;
    wait_until("all jobs but one are removed", || engine.survey_jobs().len() == 1).await;
    wait_until("their files are removed", || files(&folder).len() == 1).await;
    assert!(engine.job(fetched_late).is_none());
    let id = engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("there is room");
    assert_eq!(id, JobId::Survey(last + 1));
}

#[tokio::test]
async fn a_job_that_ends_every_server_is_given_up() {
    let folder = DataFolder::new();
    let jobs = folder.file("jobs");
    fs::create_dir(&jobs).expect("writable");
    let id: JobId = TASK.parse().expect("a name");
    for (starts, expected) in [
        (9, JobState::Done { bytes: 25 }),
        (10, JobState::Failed { reason: "given up: the server ended 10 times while it ran".into() }),
    ] {
        fs::write(jobs.join(format!("{TASK}.json")), record_of(TASK, 1, starts)).expect("writable");
        fs::write(jobs.join(format!("{TASK}.input")), PLAYS).expect("writable");
        let engine = open_again(&folder).await;
        assert_eq!(end_of(&engine, id).await.state, expected);
    }
}

#[tokio::test]
async fn jobs_are_limited_and_leave_nothing_when_the_caller_leaves() {
    let folder = DataFolder::new();
    let engine =
        folder.open_with(Durability::None, with_jobs(JobLimits { unfinished_max: 2, ..JobLimits::default() })).await;
    engine.upload_valid(SURVEY).await;
    // A task whose file is still being received counts as a job, but is not listed yet.
    let group = || GroupBy::new(vec!["a".to_owned()], vec!["b".to_owned()]).expect("different columns");
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let rest = async {
        ended.await.expect("sent");
        Ok::<_, Error>(Bytes::from_static(b"a,b\nc,1\n"))
    };
    let mut endless = Box::pin(engine.submit_task(Origin::SERVER, stream::pending(), group(), Vec::new()));
    let mut coming = Box::pin(engine.submit_task(Origin::SERVER, Box::pin(stream::once(rest)), group(), Vec::new()));
    assert!(futures_util::poll!(&mut endless).is_pending() && futures_util::poll!(&mut coming).is_pending());
    let ask = async || engine.submit_survey(question(Ask::GlobalMean, "q")).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let full = loop {
        match ask().await {
            Ok(id) => drop(result_of(&engine, id).await),
            Err(error) => break error,
        }
        assert!(Instant::now() < deadline, "both tasks are counted in the end");
    };
    assert_eq!(full.to_string(), "2 jobs are waiting or running, which is the limit: try again");
    assert_eq!((full.kind(), engine.jobs_undone()), (Kind::Exhausted, 0));
    drop(endless);
    let id = loop {
        match ask().await {
            Ok(id) => break id,
            Err(error) => assert!(Instant::now() < deadline, "a task that was dropped does not count: {error}"),
        }
    };
    assert_eq!(result_of(&engine, id).await, r#"{"global_mean":2.3333333333333335}"#);

    let before = kinds(&folder);
    engine.refuse_jobs();
    let refused = ask().await.expect_err("shutting down");
    assert_eq!((refused.to_string().as_str(), refused.kind()), ("shutting down", Kind::Unavailable));
    assert!(task(&engine, PLAYS).await.is_err());
    end.send(()).expect("it waits for this");
    assert_eq!(coming.await.expect_err("it is too late").to_string(), "shutting down");
    assert_eq!((kinds(&folder), engine.jobs_undone()), (before, 0));
}

/// If cancelling a job succeeds, the job does not end with a result, whatever it was doing.
#[tokio::test]
async fn a_cancelled_job_has_no_result() {
    let (folder, engine) = fresh().await;
    let mut random = fastrand::Rng::with_seed(7);
    let (mut cancelled, mut done) = (0, 0);
    for _ in 0..300 {
        let id = task(&engine, PLAYS).await.expect("accepted");
        for _ in 0..random.u32(..400) {
            tokio::task::yield_now().await;
        }
        let promised = engine.cancel_job(id).await.expect("a record");
        match end_of(&engine, id).await.state {
            JobState::Failed { reason } if promised && *reason == *"cancelled" => cancelled += 1,
            JobState::Done { .. } if !promised => done += 1,
            state => panic!("cancelled: {promised}, {state:?}"),
        }
    }
    wait_until("nothing is left", || folder.names_in("tmp").is_empty()).await;
    let results = kinds(&folder).iter().filter(|kind| *kind == "result").count();
    assert_eq!((cancelled + done, results), (300, done), "a cancelled job left its result");
}

#[tokio::test]
async fn a_job_that_waits_or_runs_can_be_cancelled() {
    let (folder, engine) = fresh().await;
    // One job runs at a time. The first takes long enough to be cancelled while it runs.
    let mut large = PLAYS.to_owned();
    for row in 0..400_000 {
        large += &format!("song {row},2024-01-01,{row}\n");
    }
    let first = task(&engine, &large).await.expect("accepted");
    let waiting = task(&engine, PLAYS).await.expect("accepted");
    let last = task(&engine, PLAYS).await.expect("accepted");
    assert!(engine.cancel_job(waiting).await.expect("written"), "it waits");
    wait_for("the first runs", || matches!(engine.job(first)?.state, JobState::Running { .. }).then_some(())).await;
    assert!(engine.cancel_job(first).await.expect("written"), "it runs");
    for id in [first, waiting] {
        assert_eq!(end_of(&engine, id).await.state, JobState::Failed { reason: "cancelled".into() });
        assert!(!engine.cancel_job(id).await.expect("nothing to write"), "it has ended");
    }
    assert!(result_of(&engine, last).await.starts_with("Song,Date,Total\n"), "the queue goes on");
    assert!(!engine.cancel_job(JobId::Survey(7)).await.expect("nothing to write"), "there is none");
    wait_until("nothing is left", || folder.names_in("tmp").is_empty()).await;
}

/// An engine whose first task waits until the returned group sum is dropped, so that later tasks wait too.
async fn blocked_engine() -> (DataFolder, TestEngine, Groups) {
    let (folder, engine) = fresh().await;
    let csv = folder.path().join("plays.csv");
    fs::write(&csv, PLAYS).expect("writable");
    let group = GroupBy::new(vec!["Song".to_owned()], vec!["Number of Plays".to_owned()]).expect("different columns");
    let file = Reader::open(&csv).expect("readable");
    let groups = engine.group_sum_file(Lane::Question, file, group, |_bytes_read| ()).await.expect("a good file");
    let first = task(&engine, PLAYS).await.expect("accepted");
    wait_for("it runs", || matches!(engine.job(first)?.state, JobState::Running { .. }).then_some(())).await;
    (folder, engine, groups)
}

/// Without its record it is unknown what a job was to do. It must fail, and must not block the jobs after it.
#[tokio::test]
async fn a_waiting_job_whose_record_is_lost_fails() {
    for cancelled in [false, true] {
        let (folder, engine, groups) = blocked_engine().await;
        let lost = task(&engine, PLAYS).await.expect("accepted");
        let damaged = task(&engine, PLAYS).await.expect("accepted");
        let last = task(&engine, PLAYS).await.expect("accepted");
        fs::remove_file(&files(&folder)[&format!("{lost}.json")]).expect("was there");
        fs::write(&files(&folder)[&format!("{damaged}.json")], "{").expect("writable");
        if cancelled {
            for id in [lost, damaged] {
                assert!(engine.cancel_job(id).await.expect("nothing to write"), "it waits");
                let state = end_of(&engine, id).await.state;
                assert!(matches!(state, JobState::Failed { .. }), "{state:?}");
            }
            assert_eq!(engine.jobs_undone(), 2, "the first and the last");
        }
        drop(groups);
        assert!(result_of(&engine, last).await.starts_with("Song,Date,Total\n"), "the queue goes on");
        for (id, says) in [
            (lost, format!("job \"{lost}\" is damaged: its record is gone")),
            (damaged, format!("job \"{damaged}\" is damaged: EOF while parsing an object")),
        ] {
            let JobState::Failed { reason } = end_of(&engine, id).await.state else { panic!("{:?}", engine.job(id)) };
            assert!(reason.starts_with(&says), "{reason}");
            assert!(!engine.cancel_job(id).await.expect("nothing to write"), "it has ended");
        }
        assert_eq!(engine.jobs_undone(), 0);
    }
}

#[tokio::test]
async fn downloaded_failed_and_old_jobs_are_removed() {
    let folder = DataFolder::new();
    let limits = JobLimits { sweep_interval: Duration::from_millis(5), ..JobLimits::default() };
    let engine = folder.open_with(Durability::None, with_jobs(limits)).await;
    let older = task(&engine, PLAYS).await.expect("accepted");
    result_of(&engine, older).await;
    let kept = task(&engine, PLAYS).await.expect("accepted");
    let downloaded = task(&engine, PLAYS).await.expect("accepted");
    let failed = task(&engine, "no,such\ncolumns,here\n").await.expect("accepted");
    result_of(&engine, kept).await;
    result_of(&engine, downloaded).await;
    end_of(&engine, failed).await;
    engine.mark_downloaded(downloaded).await.expect("it was done");
    let expected = ["json", "json", "json", "json", "result", "result"];
    wait_until("files are removed", || kinds(&folder) == expected).await;
    let job = engine.job(downloaded).expect("its record stays");
    assert_eq!((job.state, job.has_result), (JobState::Downloaded, false));
    assert!(engine.open_result(downloaded).await.is_err());
    assert!(matches!(engine.job(failed).expect("its record stays").state, JobState::Failed { .. }));
    assert!(result_of(&engine, kept).await.starts_with("Song,Date,Total\n"));
    drop(engine);

    let engine = folder.open_with(Durability::Fsync, with_jobs(JobLimits { bytes_max: 0, ..limits })).await;
    // The newest result stays, however small the limit is, and so do records without a result.
    wait_until("a job over the limit is removed", || engine.job(older).is_none()).await;
    wait_until("its files are removed", || kinds(&folder) == ["json", "json", "json", "result"]).await;
    assert!(result_of(&engine, kept).await.starts_with("Song,Date,Total\n"));
    assert!(engine.job(failed).is_some() && engine.job(downloaded).is_some());
}
