//! The command line as users run it: the real program, against a real server process on a port of its own, and against
//! servers that are not there, refuse, or break off.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic fails the test")]

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    process::Stdio,
    thread,
    time::Duration,
};

use clap::CommandFactory;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::{Value, json};
use tally::cli::Cli;
use tempfile::TempDir;

use self::{
    program::{KilledAtEnd, Server, nobody, run, run_with_stdin, sample, tally},
    stand_in::StandIn,
};

mod load_numstore;
mod program;
mod stand_in;

/// Characters that control a terminal, other than newline. No output may have one.
const CONTROLS: [char; 4] = ['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}'];

#[test]
fn uploads_are_listed_and_summed() {
    let server = Server::start();
    server.file("a.csv", "x,y,z\n1,2,3\n4,5,6\n");
    server.file("b.csv", "x,y\n5,10\n0,20\n");
    assert_eq!(run(&mut server.tally(["upload", "a.csv"])).succeeded(), "part 1: a.csv, 2 rows, 18 bytes\n");
    assert_eq!(run(&mut server.tally(["upload", "b.csv"])).succeeded(), "part 2: b.csv, 2 rows, 14 bytes\n");

    // The example of the P3 assignment.
    assert_eq!(server.sum("x"), "10\n");
    assert_eq!(server.sum("z"), "9\n");
    assert_eq!(server.sum("w"), "0\n");

    let table = run(&mut server.tally(["parts"])).succeeded();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert_eq!(lines[0].join(" "), "part rows csv bytes parquet bytes uploaded at columns");
    assert_eq!((&lines[1][..3], &lines[1][5..]), (&["1", "2", "18"][..], &["3:", "x,", "y,", "z"][..]));
    assert_eq!((&lines[2][..3], &lines[2][5..]), (&["2", "2", "14"][..], &["2:", "x,", "y"][..]));

    let columns = run(&mut server.tally(["parts", "--columns", "--after", "1"])).succeeded();
    let lines: Vec<&str> = columns.lines().map(str::trim).collect();
    assert!(lines[0].starts_with("part 2: 2 rows, 14 bytes of csv, "), "{columns}");
    let cells: Vec<Vec<&str>> = lines[1..].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(cells, [["type", "nulls", "column"], ["int64", "0", "x"], ["int64", "0", "y"]]);

    assert_eq!(run(&mut server.tally(["health"])).succeeded(), "serving\n");
}

#[test]
fn an_empty_table_has_a_header_only() {
    let server = Server::start();
    assert_eq!(run(&mut server.tally(["parts"])).succeeded().lines().count(), 1);
    assert_eq!(run(&mut server.tally(["parts", "--json"])).succeeded(), "");
    assert_eq!(run(&mut server.tally(["parts", "--columns"])).succeeded(), "");
    assert_eq!(server.sum("x"), "0\n");
}

#[test]
fn json_has_the_names_of_the_receipt() {
    let server = Server::start();
    server.file("a.csv", "x,name\n1,a\n,b\n");
    let uploaded = run(&mut server.tally(["upload", "--json", "a.csv"])).json_lines();
    let receipt = fs::read(server.folder.path().join("data/parts/1.json")).unwrap();
    let receipt: Value = serde_json::from_slice(&receipt).unwrap();

    let [uploaded] = &uploaded[..] else { panic!("{uploaded:?}") };
    assert_eq!(uploaded["file"], "a.csv");
    for field in ["part", "rows", "columns", "csv", "parquet", "uploaded_at"] {
        assert!(!receipt[field].is_null(), "{field} is in {receipt}");
        assert_eq!(uploaded[field], receipt[field], "{field}");
        assert_eq!(server.parts()[0][field], receipt[field], "{field}");
    }
    assert_eq!(uploaded["columns"][0], json!({"name": "x", "type": "int64", "nulls": 1}));
    assert_eq!(uploaded["csv"]["bytes"], 14);

    let sum = run(&mut server.tally(["sum", "x", "--format", "csv", "--json"])).json_lines();
    assert_eq!(sum, [json!({"column": "x", "format": "csv", "total": 1})]);
    let both = run(&mut server.tally(["sum", "x", "--format", "both", "--json"])).json_lines();
    assert_eq!(both.len(), 1);
    for format in ["csv", "parquet"] {
        let sum = &both[0][format];
        assert_eq!((&sum["total"], &sum["parts"]), (&json!(1), &json!(1)), "{both:?}");
        assert!(sum["bytes"].as_u64() > Some(0) && sum["elapsed_ms"].as_f64() > Some(0.0), "{both:?}");
    }
    assert_eq!(run(&mut server.tally(["health", "--json"])).json_lines(), [json!({"status": "serving"})]);
}

#[test]
fn the_samples_show_quoting_and_every_type() {
    let server = Server::start();
    run(server.tally(["upload", "--parallel", "1"]).args([sample("simple.csv"), sample("second.csv")])).succeeded();
    run(server.tally(["upload", "--parallel", "1"]).args([sample("quoted.csv"), sample("types.csv")])).succeeded();
    for (column, total) in [("x", "10\n"), ("z", "9\n"), ("w", "0\n"), ("qty", "1357\n"), ("code", "149\n")] {
        assert_eq!(server.sum(column), total, "{column}");
    }
    let parts = server.parts();
    assert_eq!(parts[2]["rows"], 5);
    assert_eq!(parts[2]["columns"][2], json!({"name": "price, each", "type": "int64", "nulls": 1}));
    let types: Vec<&Value> = parts[3]["columns"].as_array().unwrap().iter().map(|column| &column["type"]).collect();
    let expected = ["int64", "float64", "boolean", "date32", "timestamp", "timestamp_utc", "utf8", "utf8"];
    assert_eq!(types, expected);

    let both = run(&mut server.tally(["sum", "qty", "--format", "both"])).succeeded();
    let lines: Vec<Vec<&str>> = both.lines().map(|line| line.split_whitespace().collect()).collect();
    let [csv, parquet] = &lines[..] else { panic!("{both:?}") };
    for (line, name) in [(csv, "csv"), (parquet, "parquet")] {
        let [format, total, _, "ms", bytes, "bytes"] = line[..] else { panic!("{line:?}") };
        assert_eq!((format, total), (name, "1357"));
        assert!(bytes.parse::<u64>().unwrap() > 0);
    }
    let price = run(&mut server.tally(["sum", "price", "--format", "both"]));
    assert!(price.failed()[0].contains("not an integer"), "{price:?}");
    let price = run(&mut server.tally(["sum", "price"]));
    let [line] = price.failed()[..] else { panic!("{price:?}") };
    assert!(line.contains("part 4, row ") && line.contains("price") && line.contains("not an integer"), "{line}");
    assert_eq!(price.out, "");
}

#[test]
fn standard_input_can_be_uploaded() {
    let server = Server::start();
    // Many blocks, so that a lost or repeated block is noticed.
    let rows = 300_000;
    let csv = "qty\n".to_owned() + &"1234567\n".repeat(rows);
    let said = run_with_stdin(&mut server.tally(["upload", "-"]), csv.as_bytes());
    assert_eq!(said.succeeded(), format!("part 1: -, {rows} rows, {} bytes\n", csv.len()));
    assert_eq!(server.sum("qty"), format!("{}\n", 1_234_567 * rows));
    assert_eq!(fs::read(server.folder.path().join("data/parts/1.csv")).unwrap(), csv.as_bytes());
}

#[test]
fn many_files_are_uploaded_in_parallel() {
    let server = Server::start();
    let names: Vec<String> = (1..=20).map(|number| format!("{number}.csv")).collect();
    for (number, name) in (1..).zip(&names) {
        server.file(name, format!("x\n{number}\n"));
    }
    for parallel in ["1", "3", "64"] {
        let said = run(server.tally(["upload", "--json", "--parallel", parallel]).args(&names));
        let mut files: Vec<Value> = said.json_lines().iter().map(|line| line["file"].clone()).collect();
        assert_eq!((said.code, files.len()), (Some(0), 20), "{said:?}");
        files.sort_by_key(|file| names.iter().position(|name| file == name.as_str()));
        assert_eq!(files, names);
    }
    assert_eq!(server.sum("x"), "630\n");
}

/// Opening a pipe for writing without waiting succeeds only if it is open for reading, which shows that the program reads it.
#[cfg(target_os = "linux")]
#[test]
fn a_file_is_opened_when_an_earlier_one_has_been_read() {
    let server = Server::start();
    let names = ["one", "two", "three", "four"];
    let path = |name: &str| server.folder.path().join(name);
    for name in names {
        mknodat(CWD, path(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    let open_now = |name: &str| {
        OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path(name))
    };
    let open = |name: &str| {
        for _ in 0..1000 {
            match open_now(name) {
                Ok(pipe) => return pipe,
                Err(_nobody_reads) => thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("{name} was not opened");
    };
    let command = &mut server.tally(["upload", "--parallel", "2"]);
    let mut client = KilledAtEnd(command.args(names).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let (mut one, mut two) = (open("one"), open("two"));
    one.write_all(b"x\n1\n").unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(open_now("three").is_err(), "two files are still being read");
    drop(one);
    let mut three = open("three");
    thread::sleep(Duration::from_millis(100));
    assert!(open_now("four").is_err(), "two files are still being read");
    two.write_all(b"x\n2\n").unwrap();
    drop(two);
    let mut four = open("four");
    three.write_all(b"x\n3\n").unwrap();
    four.write_all(b"x\n4\n").unwrap();
    drop((three, four));
    assert!(client.0.wait().unwrap().success());
    assert_eq!(server.sum("x"), "10\n");
}

#[test]
fn a_bad_file_does_not_stop_the_others() {
    let server = Server::start();
    server.file("good.csv", "x\n1\n");
    server.file("bad.csv", "x\n1\n1,2\n");
    server.file("better.csv", "x\n2\n");
    fs::create_dir(server.folder.path().join("folder")).unwrap();
    let files = ["good.csv", "bad.csv", "missing.csv", "folder", "better.csv"];
    for parallel in ["1", "4"] {
        let said = run(server.tally(["upload", "--parallel", parallel]).args(files));
        let mut lines = said.failed();
        lines.sort_unstable();
        let [bad, folder, missing] = lines[..] else { panic!("{said:?}") };
        assert_eq!(bad, "error: bad.csv: row 2 (line 3) has 2 cells, the header has 1");
        assert!(folder.starts_with("error: folder: cannot read: "), "{folder}");
        assert!(missing.starts_with("error: missing.csv: cannot read: "), "{missing}");
        assert_eq!(said.out.lines().count(), 2, "{said:?}");
        assert!(said.out.contains(": good.csv, 1 row, 4 bytes\n"), "{said:?}");
        assert!(said.out.contains(": better.csv, 1 row, 4 bytes\n"), "{said:?}");
    }
    assert_eq!(server.sum("x"), "6\n");
    assert_eq!(server.parts().len(), 4);

    let said = run(&mut server.tally(["upload", "--json", "bad.csv"]));
    assert_eq!(said.failed().len(), 1);
    assert_eq!(
        said.json_lines(),
        [json!({"file": "bad.csv", "error": "row 2 (line 3) has 2 cells, the header has 1"})]
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_be_read_is_not_uploaded() {
    let server = Server::start();
    server.file("good.csv", "x\n1\n");
    // This file can be opened, but reading it fails.
    let said = run(&mut server.tally(["upload", "/proc/self/mem", "good.csv"]));
    let [line] = said.failed()[..] else { panic!("{said:?}") };
    assert!(line.starts_with("error: /proc/self/mem: cannot read: "), "{line}");
    assert_eq!(server.parts().len(), 1);
}

#[test]
fn wrong_usage_exits_with_2() {
    let wrong: [&[&str]; 24] = [
        &[],
        &["unknown"],
        &["upload"],
        &["upload", "-", "-"],
        &["upload", "--parallel", "0", "a.csv"],
        &["upload", "--parallel", "65", "a.csv"],
        &["upload", "--parallel", "many", "a.csv"],
        &["upload", "--unknown", "a.csv"],
        &["sum"],
        &["sum", "x", "y"],
        &["sum", "x", "--format", "tsv"],
        &["sum", "x", "--server", "ftp://localhost:5440"],
        &["sum", "x", "--server", "localhost:port"],
        &["parts", "extra"],
        &["parts", "--after", "-1"],
        &["parts", "--limit", "some"],
        &["health", "--server", ""],
        &["load-numstore", "extra"],
        &["load-numstore", "--clients", "0"],
        &["load-numstore", "--clients", "101"],
        &["load-numstore", "--requests", "0"],
        &["load-numstore", "--rate", "0"],
        &["load-numstore", "--keys", "0"],
        &["load-numstore", "--keys", "50001"],
    ];
    for arguments in wrong {
        let said = run(&mut tally(arguments));
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{arguments:?}: {said:?}");
        assert!(!said.err.is_empty(), "{arguments:?}");
    }
    let said = run(tally(["parts"]).env("TALLY_LIMIT", "some"));
    assert_eq!(said.code, Some(2), "{said:?}");
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let (_socket, address) = nobody();
    let file = sample("simple.csv");
    let file = file.to_str().unwrap();
    let commands: [&[&str]; 8] = [
        &["upload", file, file],
        &["upload", "-"],
        &["sum", "x"],
        &["parts"],
        &["parts", "--json"],
        &["forget", "1"],
        &["verify"],
        &["health"],
    ];
    for arguments in commands {
        for server in [address.clone(), format!("http://{address}")] {
            let said = run(tally(arguments).args(["--server", &server]));
            let expected = format!("error: no server at {address}: connection refused");
            assert_eq!(said.failed(), [expected], "{arguments:?}");
            assert_eq!(said.out, "", "{arguments:?}");
        }
    }
}

#[test]
fn a_server_that_dies_ends_an_upload_whose_input_goes_on() {
    let mut server = Server::start();
    let mut client = server
        .tally(["upload", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than the pipe and the buffers hold, so the call has begun when this is written; and the input does not end.
    let mut input = client.stdin.take().unwrap();
    input.write_all("x\n".repeat(2 << 20).as_bytes()).unwrap();
    server.process.kill().unwrap();
    let output = client.wait_with_output().unwrap();
    drop(input);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]), "{said}");
    assert!(said.starts_with(&format!("error: -: no answer from {}: ", server.address)), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn text_from_users_cannot_control_the_terminal() {
    let server = Server::start();
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}x";
    server.upload(&format!("{hostile},b\n1,{hostile}\n"));
    server.file(&format!("{hostile}.csv"), format!("{hostile}\n1\n"));
    server.file(&format!("bad {hostile}.csv"), format!("{hostile}\n1,2\n"));

    let (file, bad) = (format!("{hostile}.csv"), format!("bad {hostile}.csv"));
    let commands: [&[&str]; 10] = [
        &["parts"],
        &["parts", "--columns"],
        &["parts", "--json"],
        &["upload", &file],
        &["upload", "--json", &file],
        &["upload", &bad],
        &["upload", "--json", &bad],
        &["upload", &format!("missing {hostile}")],
        &["sum", hostile, "--json"],
        &["sum", "b"],
    ];
    for arguments in commands {
        let said = run(&mut server.tally(arguments));
        let text = format!("{}{}", said.out, said.err);
        assert!(text.to_lowercase().contains("1b"), "{arguments:?} shows the escape as text: {said:?}");
        assert!(!text.contains(|c: char| CONTROLS.contains(&c) || (c.is_control() && c != '\n')), "{said:?}");
    }
    // JSON still has the original text.
    assert_eq!(server.parts()[0]["columns"][0]["name"], hostile);
    let sum = run(&mut server.tally(["sum", hostile, "--json"])).json_lines();
    assert_eq!(sum, [json!({"column": hostile, "format": "parquet", "total": 3})]);
}

#[test]
fn a_closed_output_is_not_a_failure() {
    let server = Server::start();
    server.file("a.csv", "x\n1\n");
    server.file("b.csv", "x\n2\n");
    let commands: [&[&str]; 7] = [
        &["upload", "a.csv", "b.csv"],
        &["upload", "--json", "a.csv"],
        &["parts"],
        &["parts", "--json"],
        &["parts", "--columns"],
        &["sum", "x"],
        &["health"],
    ];
    for arguments in commands {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let said = run(server.tally(arguments).stdout(writer));
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{arguments:?}");
    }
    assert_eq!(server.sum("x"), "4\n", "the files were uploaded nevertheless");
}

#[test]
fn flags_can_come_from_the_environment() {
    let server = Server::start();
    for csv in ["x\n1\n", "x\n2\n", "x\n3\n"] {
        server.upload(csv);
    }
    let sum = run(server.tally(["sum", "x"]).env("TALLY_JSON", "1").env("TALLY_FORMAT", "csv")).json_lines();
    assert_eq!(sum, [json!({"column": "x", "format": "csv", "total": 6})]);
    let parts = run(server.tally(["parts"]).env("TALLY_JSON", "true").env("TALLY_AFTER", "1").env("TALLY_LIMIT", "1"));
    let ids: Vec<Value> = parts.json_lines().iter().map(|part| part["part"].clone()).collect();
    assert_eq!(ids, [2]);
    let columns = run(server.tally(["parts"]).env("TALLY_COLUMNS", "yes").env("TALLY_JSON", "0")).succeeded();
    assert!(columns.starts_with("part 1: 1 row, 4 bytes of csv, "), "{columns}");
    // A flag takes precedence.
    let sum = run(server.tally(["sum", "x", "--format", "parquet", "--json"]).env("TALLY_FORMAT", "csv")).json_lines();
    assert_eq!(sum[0]["format"], "parquet");
}

#[test]
fn every_flag_has_its_environment_variable_and_the_help_names_it() {
    let program = Cli::command();
    let nested = |command: &clap::Command| -> Vec<_> {
        let of = command.get_name().to_owned();
        command.get_subcommands().map(|inner| (vec![of.clone(), inner.get_name().to_owned()], inner.clone())).collect()
    };
    let commands = program.get_subcommands().flat_map(|command| match command.has_subcommands() {
        true => nested(command),
        false => vec![(vec![command.get_name().to_owned()], command.clone())],
    });
    for (words, command) in commands {
        let help = run(&mut tally(words.iter().map(String::as_str).chain(["--help"]))).succeeded();
        let mut flags = 0;
        let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
        for flag in shown.filter_map(|argument| argument.get_long()) {
            if flag == "help" {
                continue;
            }
            flags += 1;
            let variable = format!("[env: TALLY_{}", flag.to_uppercase().replace('-', "_"));
            let named =
                help.match_indices(&variable).any(|(at, _)| help[at + variable.len()..].starts_with([']', '=']));
            assert!(named, "tally {} --{flag} is {variable}] in:\n{help}", command.get_name());
        }
        assert!(flags > 0, "tally {} has flags", command.get_name());
    }
}

#[test]
fn the_message_of_the_server_is_the_error() {
    let server = StandIn::start();
    let folder = TempDir::new().unwrap();
    let (small, large) = (folder.path().join("small.csv"), folder.path().join("large.csv"));
    fs::write(&small, "x\n1\n").unwrap();
    fs::write(&large, "x\n".repeat(4 << 20)).unwrap();
    for file in [small.to_str().unwrap(), large.to_str().unwrap()] {
        let said = run(&mut tally(["upload", "--server", &server.address, file]));
        let expected = format!("error: {file}: the disk is full: \\u{{1b}}[31m0 bytes are left");
        assert_eq!(said.failed(), [expected]);
    }

    let said = run(&mut tally(["sum", "x", "--server", &server.address]));
    assert_eq!(said.failed().len(), 1, "a server without Table: {said:?}");
}

#[test]
fn a_list_that_is_interrupted_is_a_failure_and_shows_what_was_received() {
    let server = StandIn::start();
    for how in [&["parts"][..], &["parts", "--json"], &["parts", "--columns"]] {
        let said = run(tally(how).args(["--server", &server.address]));
        assert_eq!(said.failed(), ["error: part 2 is damaged"]);
        assert!(said.out.contains("1b") && said.out.contains("[31mtoday"), "{said:?}");
        assert!(!said.out.contains('\u{1b}'), "{said:?}");
    }
}

#[test]
fn a_verification_that_is_interrupted_is_a_failure_and_shows_what_was_received() {
    let server = StandIn::start();
    for how in [&["verify"][..], &["verify", "--json"]] {
        let said = run(tally(how).args(["--server", &server.address]));
        assert_eq!(said.failed(), ["error: shutting down"]);
        assert!(
            said.out.starts_with(if how.len() > 1 { "{\"file\":\"parts/1.csv\"" } else { "parts/1.csv: " }),
            "{said:?}"
        );
        assert!(!said.out.contains('\u{1b}') && said.out.lines().count() == 1, "{said:?}");
    }
}

#[test]
fn a_server_that_does_not_serve_is_unhealthy() {
    let server = StandIn::start();
    let said = run(&mut tally(["health", "--server", &server.address]));
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(1), "not serving\n", ""));
    let said = run(&mut tally(["health", "--json", "--server", &server.address]));
    assert_eq!((said.code, said.json_lines()), (Some(1), vec![json!({"status": "not serving"})]));
}
