//! Tests of the flags of `tally serve`.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    serve: ServeArgs,
}

fn config(line: &str) -> Result<Config, String> {
    let typed = Typed::try_parse_from(std::iter::once("serve").chain(line.split_whitespace()));
    Config::of(&typed.map_err(|error| error.to_string())?.serve)
}

fn addresses<const N: usize>(list: [&str; N]) -> [SocketAddr; N] {
    list.map(|text| text.parse().expect("an address"))
}

#[test]
fn the_default_is_loopback_and_durable() {
    let Config {
        data,
        grpc,
        http,
        probe,
        admin_token_file,
        allowed_origins,
        allowed_hosts,
        log_file,
        durability,
        file_mode,
        limits,
        load,
        load_dialect,
    } = config("").expect("no flags");
    assert_eq!(data, PathBuf::from("./tally-data"));
    assert_eq!(grpc, addresses(["127.0.0.1:5440", "[::1]:5440"]));
    assert_eq!(http, addresses(["127.0.0.1:5000", "[::1]:5000"]));
    assert!(probe.is_empty() && allowed_origins.is_empty() && allowed_hosts.is_empty());
    assert_eq!((admin_token_file, log_file), (None, None));
    assert_eq!(durability, Durability::Fsync);
    let at_once = available_parallelism().map_or(1, usize::from).min(SURVEYS_AT_ONCE_MAX);
    let jobs = JobLimits { statistics_at_once: at_once, ..JobLimits::default() };
    assert_eq!(format!("{limits:?}"), format!("{:?}", Limits { jobs, ..Limits::default() }));
    let many = config("--tp-num-of-threads 100").expect("valid").limits.jobs.statistics_at_once;
    assert_eq!(many, SURVEYS_AT_ONCE_MAX);
    assert!(load.is_empty() && load_dialect == Dialect::default());
    assert_eq!((limits.incomplete, file_mode), (Incomplete::Refuse, FileMode::PRIVATE));
}

#[test]
fn every_flag_reaches_its_field() {
    let line = "--data /d --grpc 127.0.0.1:1,[::1]:2 --grpc 127.0.0.1:3 --durability none --columns-max 4 \
                --cell-bytes-max 5 --row-bytes-max 6 --upload-bytes-max 7 --uploads-max 8 --upload-idle-s 9 \
                --jobs-age-s 10 --jobs-bytes-max 11 --jobs-sweep-s 12 --jobs-max 13 --load a,b.csv c.csv --load d.csv \
                --load-delimiter ; --load-encoding latin1 --load-null NA --load-null - --load-trim \
                --load-drop-trailing-empty --load-decompress auto \
                --http 127.0.0.1:10,[::1]:11 --http 127.0.0.1:12 --probe 127.0.0.1:13,[::1]:14 --admin-token-file /t \
                --log-file /l --log-file-bytes-max 13 --log-files-kept 14 --incomplete answer --file-mode 640 --parts-max 15 \
                --scrub-interval 15 --call-timeout-s 16 --undo-s 17 --pack-above 18 --pack-bytes-per-s 19 --allowed-host a.example,b --allowed-host [::7] --statistics-at-once 3 \
                --allowed-origin HTTP://Front.example:80/,https://[::1]:8443 --allowed-origin http://localhost:3000";
    let Config {
        data,
        grpc,
        http,
        probe,
        admin_token_file,
        allowed_origins,
        allowed_hosts,
        log_file,
        durability,
        file_mode,
        limits,
        load,
        load_dialect,
    } = config(line).expect("valid");
    assert_eq!(data, PathBuf::from("/d"));
    assert_eq!(load, ["a,b.csv", "c.csv", "d.csv"].map(PathBuf::from));
    let expected = Dialect {
        delimiter: Some(";".parse().expect("a delimiter")),
        encoding: Some("windows-1252".parse().expect("an encoding")),
        null: NullTexts::new(vec!["NA".to_owned(), "-".to_owned()]).expect("few"),
        trim: true,
        drop_trailing_empty: true,
        decompress: Some(Decompress::Auto),
    };
    assert_eq!(load_dialect, expected);
    assert_eq!(grpc, addresses(["127.0.0.1:1", "[::1]:2", "127.0.0.1:3"]));
    assert_eq!(http, addresses(["127.0.0.1:10", "[::1]:11", "127.0.0.1:12"]));
    assert_eq!(probe, addresses(["127.0.0.1:13", "[::1]:14"]));
    assert_eq!(admin_token_file, Some(PathBuf::from("/t")));
    assert_eq!(allowed_hosts, ["a.example", "b", "[::7]"]);
    assert_eq!(limits.undo, Duration::from_secs(17));
    assert_eq!((limits.pack_above, limits.pack_bytes_per_s), (18, 19));
    assert_eq!(allowed_origins, ["http://front.example", "https://[::1]:8443", "http://localhost:3000"]);
    assert_eq!(log_file, Some(LogFile { path: PathBuf::from("/l"), bytes_max: 13, files_kept: 14 }));
    assert_eq!((durability, limits.incomplete), (Durability::None, Incomplete::Answer));
    assert_eq!((Ok(file_mode), limits.parts_max), ("0640".parse(), 15));
    assert_eq!(limits.scrub_interval, Some(Duration::from_secs(15)));
    let CsvLimits { columns_max, cell_bytes_max, row_bytes_max } = limits.csv;
    assert_eq!((columns_max, cell_bytes_max, row_bytes_max), (4, 5, 6));
    assert_eq!((limits.upload_bytes_max, limits.uploads_max, limits.upload_idle_max.as_secs()), (7, 8, 9));
    assert_eq!(limits.call_idle_max.as_secs(), 16);
    let JobLimits { unfinished_max, age_max, bytes_max, sweep_interval, statistics_at_once } = limits.jobs;
    assert_eq!((age_max.as_secs(), bytes_max, sweep_interval.as_secs(), unfinished_max), (10, 11, 12, 13));
    assert_eq!(statistics_at_once, 3);
}

#[test]
fn http_can_be_turned_off() {
    assert_eq!(config("--http none").expect("valid").http, []);
    assert_eq!(config("--http none --http 127.0.0.1:1").expect_err("both"), "--http: none must be the only value");
    assert!(config("--http none,none").is_err());
}

#[test]
fn values_above_their_ceiling_and_wrong_addresses_are_refused() {
    for line in [
        "--columns-max 4097",
        "--columns-max 0",
        "--row-bytes-max 8388609",
        "--cell-bytes-max 8388609",
        "--uploads-max 129",
        "--upload-bytes-max 0",
        "--upload-idle-s 0",
        "--call-timeout-s 0",
        "--jobs-age-s 0",
        "--jobs-max 1001",
        "--jobs-sweep-s 0",
        "--grpc nonsense",
        "--grpc 127.0.0.1:70000",
        "--http nonsense",
        "--log-file-bytes-max 0",
        "--log-files-kept 0",
        "--durability maybe",
        "--incomplete maybe",
        "--parts-max 0",
        "--parts-max 1000000",
        "--file-mode 0400",
        "--file-mode 0700",
        "--file-mode 0608",
        "--file-mode 10600",
        "--file-mode private",
        "--scrub-interval-s 0",
        "--undo-s 0",
        "--allowed-host a.example:80",
        "--allowed-host http://a.example",
        "--allowed-host [a]",
        "--statistics-at-once 0",
        "--statistics-at-once 9",
        "--allowed-origin localhost:3000",
        "--allowed-origin *",
        "--allowed-origin null",
        "--allowed-origin ftp://localhost",
        "--allowed-origin http://user@localhost",
        "--allowed-origin http://localhost/path",
        "--allowed-origin http://localhost:70000",
        "--log =,=",
    ] {
        assert!(config(line).is_err(), "{line}");
    }
}
