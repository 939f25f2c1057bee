//! `tally load-numstore`: what it reports, and how it ends when an answer is wrong.

use serde_json::Value;

use crate::{
    program::{Server, run, tally},
    stand_in::{SLOW_MS, Slow, StandIn},
};

#[test]
fn a_load_is_reported_and_the_same_seed_repeats_it() {
    let load = |server: &Server, clients: &str, keys: &str| {
        let arguments = ["load-numstore", "--json", "--requests", "500", "--seed", "7"];
        let command = run(server.tally(arguments).args(["--clients", clients, "--keys", keys]));
        let lines = command.json_lines();
        command.succeeded();
        assert_eq!(lines.len(), 1);
        lines.into_iter().next().unwrap()
    };
    let count = |report: &Value, name: &str| report[name].as_u64().unwrap();

    let one = load(&Server::start(), "1", "20");
    let again = load(&Server::start(), "1", "20");
    for name in ["requests", "set_num", "fact", "not_set", "hits", "hit_rate", "seed", "clients"] {
        assert_eq!(one[name], again[name], "{name}");
    }
    assert!(count(&one, "set_num") > 200 && count(&one, "fact") > 200, "half of each: {one}");
    assert!(count(&one, "not_set") > 0 && count(&one, "hits") > 0, "{one}");

    let server = Server::start();
    let many = load(&server, "8", "100");
    assert_eq!(count(&many, "requests"), 8 * 500);
    assert_eq!(count(&many, "set_num") + count(&many, "fact"), 8 * 500);
    let answered = count(&many, "fact") - count(&many, "not_set");
    let hit_rate = many["hit_rate"].as_f64().unwrap();
    assert!((hit_rate - count(&many, "hits") as f64 / answered as f64).abs() < 1e-12, "{many}");
    let times = ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"].map(|name| many[name].as_f64().unwrap());
    assert!(times.is_sorted() && times[0] > 0.001, "{many}");
    assert!(load(&server, "8", "100")["not_set"] == 0, "all keys are set by now");

    let text = run(&mut server.tally(["load-numstore", "--requests", "50", "--rate", "100000"])).succeeded();
    for name in ["requests  ", "requests a second", "cache hit rate", "p50     response time", "p99     response time"]
    {
        assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 1, "{name} in {text}");
    }
    let (_, histogram) = text.split_once("response time in ms").unwrap();
    let counts = histogram.lines().skip(1).map(|line| line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap());
    assert_eq!(counts.sum::<u64>(), 8 * 50, "{text}");
}

/// It stops even while other clients still wait for an answer.
#[test]
fn a_load_stops_at_a_wrong_answer() {
    let server = StandIn::start();
    let load = |clients: &str, keys: &str, seed: &str| {
        let arguments = ["load-numstore", "--clients", clients, "--keys", keys, "--seed", seed];
        run(tally(arguments).env("TALLY_SERVER", &server.address)).failed().join("; ")
    };
    let said: Vec<_> = (0..40).map(|seed| load("1", "3", &seed.to_string())).collect();
    for expected in [
        "error: key0: 121 is not a factorial of 1 to 15",
        "error: key \"key0\" is not set",
        "error: there are 0 keys, which is the limit",
    ] {
        assert!(said.iter().any(|line| line == expected), "{expected} in {said:?}");
    }
    // Requests for most of 50 keys are never answered, so most clients hang.
    assert!(load("30", "50", "1").starts_with("error: "));
}

#[test]
fn response_times_count_from_when_a_request_is_due() {
    let report = |server: &str, arguments: &[&str]| {
        let said = run(tally(["load-numstore", "--json", "--seed", "5"]).args(arguments).env("TALLY_SERVER", server));
        said.json_lines().pop().unwrap()
    };
    let server = Server::start();
    let paced = report(&server.address, &["--clients", "2", "--requests", "10", "--rate", "40"]);
    // The last of 20 requests is due 19 / 40 s after the first.
    assert!(paced["seconds"].as_f64().unwrap() >= 0.475, "{paced}");
    assert_eq!(paced["rate"], 40);

    // Requests are due one millisecond apart, and each waits for all before it.
    let slow = StandIn::with(Slow);
    let late = report(&slow.address, &["--clients", "1", "--requests", "10", "--rate", "1000"]);
    let (p50_ms, max_ms) = (late["p50_ms"].as_f64().unwrap(), late["max_ms"].as_f64().unwrap());
    assert!(max_ms >= 10.0 * SLOW_MS as f64 - 10.0 && p50_ms >= 5.0 * SLOW_MS as f64 - 10.0, "{late}");
}
