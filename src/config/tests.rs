//! Tests of the flags of `tally serve`.

use clap::Parser;

use super::{access::TlsFiles, *};
use crate::limits::Quotas;

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
        access,
        allowed_origins,
        allowed_hosts,
        log_file,
        audit_log,
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
    let local = AccessConfig {
        token_file: None,
        admin_token_file: None,
        quotas: Quotas::default(),
        tls: None,
        is_beyond_loopback: false,
    };
    assert_eq!((access, log_file, audit_log), (local, None, None));
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
                --http 127.0.0.1:10,[::1]:11 --http 127.0.0.1:12 --probe 127.0.0.1:13,[::1]:14 --admin-token-file /t --token-file /u --tls-cert /c --tls-key /k --tls-client-ca /a \
                --quota-calls-per-s 20 --quota-uploads 21 --quota-bytes-per-day 22 --quota-parts-per-day 23 \
                --insecure-allow-anyone \
                --log-file /l --log-file-bytes-max 13 --log-files-kept 14 \
                --audit-log /m --audit-log-bytes-max 24 --audit-logs-kept 25 --incomplete answer --file-mode 640 --parts-max 15 \
                --scrub-interval 15 --call-timeout-s 16 --undo-s 17 --pack-above 18 --pack-bytes-per-s 19 --allowed-host a.example,b --allowed-host [::7] --statistics-at-once 3 \
                --allowed-origin HTTP://Front.example:80/,https://[::1]:8443 --allowed-origin http://localhost:3000";
    let Config {
        data,
        grpc,
        http,
        probe,
        access,
        allowed_origins,
        allowed_hosts,
        log_file,
        audit_log,
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
    let files = ["/u", "/t"].map(|path| Some(PathBuf::from(path)));
    let [token_file, admin_token_file] = files;
    let quotas = Quotas { calls_per_s: Some(20), uploads: Some(21), bytes_per_day: Some(22), parts_per_day: Some(23) };
    let [certificates, key] = ["/c", "/k"].map(PathBuf::from);
    let tls = Some(TlsFiles { certificates, key, client_authorities: Some(PathBuf::from("/a")) });
    assert_eq!(access, AccessConfig { token_file, admin_token_file, quotas, tls, is_beyond_loopback: false });
    assert_eq!(allowed_hosts, ["a.example", "b", "[::7]"]);
    assert_eq!(limits.undo, Duration::from_secs(17));
    assert_eq!((limits.pack_above, limits.pack_bytes_per_s), (18, 19));
    assert_eq!(allowed_origins, ["http://front.example", "https://[::1]:8443", "http://localhost:3000"]);
    assert_eq!(log_file, Some(LogFile { path: PathBuf::from("/l"), bytes_max: 13, files_kept: 14 }));
    assert_eq!(audit_log, Some(LogFile { path: PathBuf::from("/m"), bytes_max: 24, files_kept: 25 }));
    assert!(config("--log-file /l --audit-log /l").expect_err("one file").contains("another file"));
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
fn beyond_loopback_a_server_needs_tokens_or_the_flag_that_it_does_not() {
    for beyond in ["--grpc 0.0.0.0:1", "--http [::]:1", "--grpc 127.0.0.1:1,192.0.2.1:1", "--http [::ffff:192.0.2.1]:1"]
    {
        let refused = config(beyond).expect_err(beyond);
        assert!(refused.contains("--token-file FILE") && refused.contains("--insecure-allow-anyone"), "{refused}");
        assert!(!refused.contains('\n'));
        for allowed in ["--insecure-allow-anyone", "--token-file /t", "--token-file /t --insecure-allow-anyone"] {
            assert!(config(&format!("{beyond} {allowed}")).expect(allowed).access.is_beyond_loopback);
        }
        assert!(config(&format!("{beyond} --admin-token-file /t")).is_err());
    }
    for here in
        ["--grpc 127.0.0.2:1", "--http [::1]:1", "--http none", "--probe 0.0.0.0:1", "--http [::ffff:127.0.0.1]:1"]
    {
        assert!(!config(here).expect(here).access.is_beyond_loopback);
    }
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
        "--tls-cert /c",
        "--tls-key /k",
        "--tls-cert /c --tls-key /k --tls-client-ca /a",
        "--token-file /t --tls-client-ca /a",
        "--quota-calls-per-s 0",
        "--quota-calls-per-s 1000001",
        "--quota-uploads 0",
        "--quota-bytes-per-day 0",
        "--quota-parts-per-day 0",
        "--log =,=",
    ] {
        assert!(config(line).is_err(), "{line}");
    }
}
