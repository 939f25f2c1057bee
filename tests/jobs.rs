//! Jobs through the engine: what they answer, what a restart finds, what is refused, cancelled, removed.
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
        Durability, Engine, Job, JobId, JobState, checksums,
        group::{GroupBy, Groups},
        state::Lane,
        store::Reader,
        survey::{Ask, SurveyQuestion},
    },
    error::{Error, Kind},
    limits::{JOBS_MAX, JobLimits, Limits},
};
use tempfile::TempDir;

const SURVEY: &str = "Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1\n\
                      q,Ohio,1,Income,low\nq,Ohio,2,Income,high\nq,Iowa,4,,\nr,Ohio,9,Income,low\n";
const PLAYS: &str = "Song,Date,Number of Plays\n\"a, b\",2024-01-02,1\nc,2024-01-01,5\n\"a, b\",2024-01-02,10\n";
const HEADER: [&str; 3] = ["Song", "Date", "Total"];

async fn open(folder: &Path, jobs: JobLimits) -> Engine {
    let limits = Limits { jobs, ..Limits::default() };
    Engine::open(folder, Durability::None, limits).await.expect("a data folder").0
}

async fn fresh() -> (Engine, TempDir) {
    let folder = TempDir::new().expect("a temporary folder");
    (open(folder.path(), JobLimits::default()).await, folder)
}

/// Polls, for a job's end has no event that the engine's users could wait for.
async fn until<T>(what: &str, condition: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn end_of(engine: &Engine, id: JobId) -> Job {
    until("a job ends", || {
        engine.job(id).filter(|job| !matches!(job.state, JobState::Queued | JobState::Running { .. }))
    })
    .await
}

async fn result_of(engine: &Engine, id: JobId) -> String {
    let JobState::Done { bytes } = end_of(engine, id).await.state else {
        panic!("{:?}", engine.job(id));
    };
    let file = engine.open_result(id).await.expect("a result");
    assert_eq!(file.bytes(), bytes);
    let mut text = Vec::new();
    while (text.len() as u64) < bytes {
        // In pieces, as it is sent.
        text.extend_from_slice(&file.read(text.len() as u64, 7).await.expect("readable"));
    }
    String::from_utf8(text).expect("text")
}

async fn upload(engine: &Engine, csv: &str) {
    let body = stream::iter([Ok::<_, Error>(Bytes::copy_from_slice(csv.as_bytes()))]);
    engine.upload(body).await.expect("a good file");
}

fn question(ask: Ask, question: &str) -> SurveyQuestion {
    SurveyQuestion::new(ask, question.to_owned(), None, None).expect("a question")
}

async fn task(engine: &Engine, csv: &str) -> Result<JobId, Error> {
    let blocks: Vec<_> = csv.as_bytes().chunks(5).map(|block| Ok(Bytes::copy_from_slice(block))).collect();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let group = GroupBy::new(names(&["Song", "Date"]), names(&["Number of Plays"])).expect("different columns");
    engine.submit_task(stream::iter(blocks), group, names(&HEADER)).await
}

/// What is in `jobs/`, by name.
fn files(folder: &TempDir) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder.path().join("jobs")).expect("readable");
    let named = |path: PathBuf| (path.file_name().expect("a name").to_string_lossy().into_owned(), path);
    entries.map(|entry| named(entry.expect("an entry").path())).collect()
}

fn kinds(folder: &TempDir) -> Vec<String> {
    let mut kinds: Vec<_> =
        files(folder).into_keys().map(|name| name.rsplit('.').next().unwrap_or_default().to_owned()).collect();
    kinds.sort();
    kinds
}

fn record(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

#[tokio::test]
async fn a_statistic_is_asked_now_and_fetched_later() {
    let (engine, folder) = fresh().await;
    upload(&engine, SURVEY).await;
    let means = engine.submit_survey(question(Ask::StatesMean, "q")).await.expect("accepted");
    let unknown = engine.submit_survey(question(Ask::GlobalMean, "nobody asked")).await.expect("accepted");
    assert_eq!((means, unknown), (JobId::Survey(1), JobId::Survey(2)));
    assert_eq!(result_of(&engine, means).await, r#"{"Ohio":1.5,"Iowa":4.0}"#);
    let JobState::Failed { reason } = end_of(&engine, unknown).await.state else { panic!("{:?}", engine.job(unknown)) };
    assert_eq!(*reason, *"no row with a value for question \"nobody asked\"");
    assert_eq!(engine.jobs_undone(), 0);
    assert_eq!(engine.survey_jobs().iter().map(|job| job.id).collect::<Vec<_>>(), [means, unknown]);
    assert_eq!(kinds(&folder), ["json", "json", "result"]);
    engine.close();
}

#[tokio::test]
async fn a_file_is_grouped_and_summed() {
    let (engine, folder) = fresh().await;
    let id = task(&engine, PLAYS).await.expect("accepted");
    assert_eq!(result_of(&engine, id).await, "Song,Date,Total\n\"a, b\",2024-01-02,11\nc,2024-01-01,5\n");
    for (csv, expected) in [
        ("Song,Date\na,b\n", "the file has no column \"Number of Plays\""),
        ("Song,Date,Number of Plays\na,b,1\na,b,x\n", "row 2, column \"Number of Plays\": \"x\" is not an integer"),
        ("Song,Date,Number of Plays\na,b\n", "row 1 has 2 cells, the header has 3"),
        ("", "the file has no header row"),
    ] {
        let id = task(&engine, csv).await.expect("accepted: what is wrong with it is the job's");
        assert_eq!(end_of(&engine, id).await.state, JobState::Failed { reason: expected.into() }, "{csv:?}");
    }
    assert!(engine.survey_jobs().is_empty());
    assert_eq!(fs::read_dir(folder.path().join("tmp")).expect("readable").count(), 0, "drafts are left");
    engine.close();
}

#[tokio::test]
async fn a_restart_answers_what_was_done_and_runs_what_was_not() {
    let (engine, folder) = fresh().await;
    upload(&engine, SURVEY).await;
    let survey = engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("accepted");
    let done = task(&engine, PLAYS).await.expect("accepted");
    let again = task(&engine, PLAYS).await.expect("accepted");
    let lost = task(&engine, PLAYS).await.expect("accepted");
    let expected = result_of(&engine, done).await;
    let (mean, _) = (result_of(&engine, survey).await, result_of(&engine, again).await);
    result_of(&engine, lost).await;
    engine.close();
    drop(engine);

    // As a server leaves it that was killed in the middle of `again`, and whose disk lost a result.
    let path = files(&folder)[&format!("{again}.json")].clone();
    let mut text = record(&path);
    assert_eq!(text["state"]["done"]["bytes"], json!(expected.len()));
    text["state"] = json!("running");
    text.as_object_mut().expect("an object").remove("record_xxh3");
    let input_check = checksums::to_hex(checksums::checksum(PLAYS.as_bytes()));
    assert_eq!(text["input_check"], json!(input_check));
    fs::write(&path, checksums::seal(text.to_string().into_bytes())).expect("writable");
    fs::write(path.with_extension("input"), PLAYS).expect("writable");
    fs::write(path.with_extension("result"), "a result whose record did not come any more").expect("writable");
    fs::remove_file(&files(&folder)[&format!("{lost}.result")]).expect("was there");
    // And what it leaves of a job that it had not accepted yet.
    fs::write(folder.path().join("jobs/00000000-0000-4000-8000-000000000000.input"), "x").expect("writable");

    let engine = open_again(&folder).await;
    assert_eq!(result_of(&engine, survey).await, mean);
    assert_eq!(result_of(&engine, done).await, expected);
    assert_eq!(result_of(&engine, again).await, expected);
    assert_eq!(end_of(&engine, lost).await.state, JobState::Failed { reason: "its result is gone".into() });
    assert!(!files(&folder).keys().any(|name| name.starts_with("00000000")), "a stray input is left");
    let next = engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("accepted");
    assert_eq!(next, JobId::Survey(2), "numbers go on where they were");
    engine.close();
}

/// The first engine's folder is free once its last task has ended.
async fn open_again(folder: &TempDir) -> Engine {
    open_again_with(folder, JobLimits::default()).await
}

async fn open_again_with(folder: &TempDir, jobs: JobLimits) -> Engine {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Engine::open(folder.path(), Durability::Fsync, Limits { jobs, ..Limits::default() }).await {
            Ok((engine, _)) => return engine,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A record, as it is on disk.
fn record_of(id: &str, format: u32, starts: u32) -> String {
    let work = json!({"group_sum": {"by": ["Song"], "sum": ["Number of Plays"], "header": ["Song", "Total"]}});
    let since = "2026-01-01T00:00:00Z";
    json!({"format": format, "id": id, "order": 1, "starts": starts, "work": work, "state": "running", "since": since})
        .to_string()
}

const TASK: &str = "0b5e2c14-6f1a-4a52-9a0e-1f7a4e5b3c2d";

#[tokio::test]
async fn a_damaged_record_is_set_aside_and_a_newer_one_stops_the_start() {
    let folder = TempDir::new().expect("a temporary folder");
    let jobs = folder.path().join("jobs");
    fs::create_dir(&jobs).expect("writable");
    for (name, text) in [("job_id_7", ""), ("job_id_8", "{"), ("job_id_9", &record_of("job_id_8", 1, 0))] {
        fs::write(jobs.join(format!("{name}.json")), text).expect("writable");
        fs::write(jobs.join(format!("{name}.result")), "1").expect("writable");
    }
    fs::write(jobs.join("stray.result"), "1").expect("writable");
    let newer = checksums::seal(record_of(TASK, 9, 0).into_bytes());
    fs::write(jobs.join(format!("{TASK}.json")), newer).expect("writable");
    let refused = Engine::open(folder.path(), Durability::None, Limits::default()).await.map(|_| ());
    let expected = format!("job {TASK} has format version 9, this program knows 2: use a newer one");
    assert_eq!(refused.expect_err("newer").to_string(), expected);
    assert!(jobs.join("stray.result").exists() && jobs.join("job_id_7.json").exists(), "nothing was changed");

    fs::remove_file(jobs.join(format!("{TASK}.json"))).expect("was there");
    let engine = open_again(&folder).await;
    assert!(engine.survey_jobs().is_empty());
    assert_eq!(files(&folder).len(), 0);
    let aside = || fs::read_dir(folder.path().join("quarantine")).expect("readable").count();
    assert_eq!(aside(), 6, "records and results");
    // Nobody who still asks for one of them is told of another.
    let ask = async |engine: &Engine| engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("accepted");
    let id = ask(&engine).await;
    assert_eq!(id, JobId::Survey(10));
    end_of(&engine, id).await;
    engine.close();
    drop(engine);
    fs::write(jobs.join("job_id_10.json"), "{").expect("writable");
    open_again(&folder).await.close();
    let engine = open_again(&folder).await;
    assert_eq!((ask(&engine).await, aside()), (JobId::Survey(11), 7));
    engine.close();
}

/// A start neither ends nor goes wrong at a number that nobody gave out.
#[tokio::test]
async fn a_job_whose_number_is_beyond_all_is_set_aside() {
    let folder = TempDir::new().expect("a temporary folder");
    let (jobs, quarantine) = (folder.path().join("jobs"), folder.path().join("quarantine"));
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
    engine.close();
}

#[tokio::test]
async fn a_result_that_is_not_whole_is_no_result() {
    let (engine, folder) = fresh().await;
    let id = task(&engine, PLAYS).await.expect("accepted");
    let whole = result_of(&engine, id).await;
    let path = folder.path().join("jobs").join(format!("{id}.result"));
    fs::write(&path, &whole[..20]).expect("writable");
    let error = engine.open_result(id).await.err().expect("damaged");
    assert_eq!(error.kind(), Kind::DataLoss);
    let says = format!("job \"{id}\" is damaged: its result has 20 bytes, and had {}", whole.len());
    assert_eq!(error.to_string(), says);
    engine.close();
}

/// Of the jobs that are known, those that nobody can fetch anything of make room first.
#[tokio::test]
async fn jobs_that_ended_make_room() {
    let folder = TempDir::new().expect("a temporary folder");
    let engine = open(folder.path(), JobLimits::default()).await;
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
    engine.close();
    drop(engine);

    // Old ones go too; the newest number stays known, or it would be given out again.
    let limits =
        JobLimits { age_max: Duration::ZERO, sweep_interval: Duration::from_millis(5), ..JobLimits::default() };
    let engine = open_again_with(&folder, limits).await;
    until("all but one are forgotten", || (engine.survey_jobs().len() == 1).then_some(())).await;
    until("their files go", || (files(&folder).len() == 1).then_some(())).await;
    assert!(engine.job(fetched_late).is_none());
    let id = engine.submit_survey(question(Ask::GlobalMean, "q")).await.expect("there is room");
    assert_eq!(id, JobId::Survey(last + 1));
    engine.close();
}

#[tokio::test]
async fn a_job_that_no_server_survives_is_given_up() {
    let folder = TempDir::new().expect("a temporary folder");
    let jobs = folder.path().join("jobs");
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
        engine.close();
    }
}

#[tokio::test]
async fn jobs_are_bounded_refused_and_leave_nothing_when_the_caller_goes() {
    let folder = TempDir::new().expect("a temporary folder");
    let engine = open(folder.path(), JobLimits { undone_max: 2, ..JobLimits::default() }).await;
    upload(&engine, SURVEY).await;
    // Files that are still coming hold the places of jobs, and are none yet.
    let group = || GroupBy::new(vec!["a".to_owned()], vec!["b".to_owned()]).expect("different columns");
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let rest = async {
        ended.await.expect("sent");
        Ok::<_, Error>(Bytes::from_static(b"a,b\nc,1\n"))
    };
    let mut endless = Box::pin(engine.submit_task(stream::pending(), group(), Vec::new()));
    let mut coming = Box::pin(engine.submit_task(Box::pin(stream::once(rest)), group(), Vec::new()));
    assert!(futures_util::poll!(&mut endless).is_pending() && futures_util::poll!(&mut coming).is_pending());
    let ask = async || engine.submit_survey(question(Ask::GlobalMean, "q")).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let full = loop {
        match ask().await {
            Ok(id) => drop(result_of(&engine, id).await),
            Err(error) => break error,
        }
        assert!(Instant::now() < deadline, "both have their places in the end");
    };
    assert_eq!(full.to_string(), "2 jobs are waiting or running, which is the limit: try again");
    assert_eq!((full.kind(), engine.jobs_undone()), (Kind::Exhausted, 0));
    drop(endless);
    let id = loop {
        match ask().await {
            Ok(id) => break id,
            Err(error) => assert!(Instant::now() < deadline, "the place of one who has gone is free: {error}"),
        }
    };
    assert_eq!(result_of(&engine, id).await, r#"{"global_mean":2.3333333333333335}"#);

    let before = kinds(&folder);
    engine.refuse_jobs();
    let refused = ask().await.expect_err("shutting down");
    assert_eq!((refused.to_string().as_str(), refused.kind()), ("shutting down", Kind::Unavailable));
    assert!(task(&engine, PLAYS).await.is_err());
    end.send(()).expect("it waits for this");
    assert_eq!(coming.await.expect_err("it comes too late").to_string(), "shutting down");
    assert_eq!((kinds(&folder), engine.jobs_undone()), (before, 0));
    engine.close();
}

/// Whatever a job is doing when it is cancelled, it does not end with a result after that was promised.
#[tokio::test]
async fn what_was_cancelled_is_not_done() {
    let (engine, folder) = fresh().await;
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
    until("nothing is left", || (fs::read_dir(folder.path().join("tmp")).ok()?.count() == 0).then_some(())).await;
    let results = kinds(&folder).iter().filter(|kind| *kind == "result").count();
    assert_eq!((cancelled + done, results), (300, done), "a cancelled job has left its result");
    engine.close();
}

#[tokio::test]
async fn a_job_that_waits_or_runs_can_be_cancelled() {
    let (engine, folder) = fresh().await;
    // One at a time: the others wait for the first, which takes long enough to be met.
    let mut large = PLAYS.to_owned();
    for row in 0..400_000 {
        large += &format!("song {row},2024-01-01,{row}\n");
    }
    let first = task(&engine, &large).await.expect("accepted");
    let waiting = task(&engine, PLAYS).await.expect("accepted");
    let last = task(&engine, PLAYS).await.expect("accepted");
    assert!(engine.cancel_job(waiting).await.expect("written"), "it waits");
    until("the first runs", || matches!(engine.job(first)?.state, JobState::Running { .. }).then_some(())).await;
    assert!(engine.cancel_job(first).await.expect("written"), "it runs");
    for id in [first, waiting] {
        assert_eq!(end_of(&engine, id).await.state, JobState::Failed { reason: "cancelled".into() });
        assert!(!engine.cancel_job(id).await.expect("nothing to write"), "it has ended");
    }
    assert!(result_of(&engine, last).await.starts_with("Song,Date,Total\n"), "the queue goes on");
    assert!(!engine.cancel_job(JobId::Survey(7)).await.expect("nothing to write"), "there is none");
    until("nothing is left", || (fs::read_dir(folder.path().join("tmp")).ok()?.count() == 0).then_some(())).await;
    engine.close();
}

/// An engine in which the turn of the second task never comes until what is returned beside it, another group sum, is dropped.
async fn one_task_at_work() -> (Engine, TempDir, Groups) {
    let (engine, folder) = fresh().await;
    let csv = folder.path().join("plays.csv");
    fs::write(&csv, PLAYS).expect("writable");
    let group = GroupBy::new(vec!["Song".to_owned()], vec!["Number of Plays".to_owned()]).expect("different columns");
    let file = Reader::open(&csv).expect("readable");
    let groups = engine.group_sum_file(Lane::Question, file, group, |_bytes_read| ()).await.expect("a good file");
    let first = task(&engine, PLAYS).await.expect("accepted");
    until("it runs", || matches!(engine.job(first)?.state, JobState::Running { .. }).then_some(())).await;
    (engine, folder, groups)
}

/// Nobody can say any more what such a job was to do; it must not stay undone, nor hold up those behind it.
#[tokio::test]
async fn a_waiting_job_whose_record_is_lost_fails() {
    for cancelled in [false, true] {
        let (engine, folder, groups) = one_task_at_work().await;
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
        engine.close();
    }
}

#[tokio::test]
async fn what_is_downloaded_failed_or_old_goes() {
    let folder = TempDir::new().expect("a temporary folder");
    let limits = JobLimits { sweep_interval: Duration::from_millis(5), ..JobLimits::default() };
    let engine = open(folder.path(), limits).await;
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
    until("files go", || (kinds(&folder) == expected).then_some(())).await;
    let job = engine.job(downloaded).expect("its record stays");
    assert_eq!((job.state, job.has_result), (JobState::Downloaded, false));
    assert!(engine.open_result(downloaded).await.is_err());
    assert!(matches!(engine.job(failed).expect("its record stays").state, JobState::Failed { .. }));
    assert!(result_of(&engine, kept).await.starts_with("Song,Date,Total\n"));
    engine.close();
    drop(engine);

    let engine = open_again_with(&folder, JobLimits { bytes_max: 0, ..limits }).await;
    // The newest result stays, however little room there is, and so does what takes none.
    until("a job over the limit goes", || engine.job(older).is_none().then_some(())).await;
    until("its files go", || (kinds(&folder) == ["json", "json", "json", "result"]).then_some(())).await;
    assert!(result_of(&engine, kept).await.starts_with("Song,Date,Total\n"));
    assert!(engine.job(failed).is_some() && engine.job(downloaded).is_some());
    engine.close();
}
