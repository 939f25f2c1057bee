//! `tally load-numstore`: measures the key/value service with many clients at once.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, value_parser};
use console::Term;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use indicatif::{HumanCount, ProgressBar, ProgressState};
use serde::Serialize;
use tokio::{task::JoinSet, time::sleep_until};

use super::{
    connect::{ClientArgs, Connection, call_failure, connect},
    failure::Failure,
    output::{style, write_json},
    server_addr::ServerAddr,
};
use crate::{
    limits::KEYS_MAX,
    proto::pb::{FactRequest, FactResponse, SetNumRequest, num_store_client::NumStoreClient},
};

/// The values that are set, as in the original NumStore client; so the only right answers are their factorials.
const VALUES: std::ops::RangeInclusive<i64> = 1..=15;
/// Significant digits of a response time in the histogram: the error is below 0.1 %.
const DIGITS: u8 = 3;
/// Where the first lines of the printed histogram end, in nanoseconds. The next lines end at ten times that, and so on.
const STEPS: [u64; 6] = [1_000, 1_500, 2_000, 3_000, 5_000, 7_000];
/// How often the steps are repeated: up to 700 s. A longer response time counts as 700 s.
const POWERS: u32 = 9;
const NANOSECONDS_MAX: u64 = 7_000 * 10_u64.pow(POWERS - 1);

/// Measure the key/value service NumStore with many requests: half SetNum, half Fact, on random keys
///
/// Each client has its own connection and sends a request when the previous one is answered.
/// Prints the rate of requests, the cache hit rate of the factorials, percentiles of the response
/// time and its histogram. A wrong factorial, or a call that fails, ends it with exit code 1. It
/// sets the keys key0, key1 and so on to values from 1 to 15; nobody else should set them meanwhile.
///
/// With --rate, requests are sent at fixed times. If a request is sent late, because the answer
/// before it came late, its response time counts from the time at which it was due. So the delays
/// of a slow server are fully counted.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally load-numstore\n  \
        tally load-numstore --clients 64 --requests 100000\n  \
        tally load-numstore --rate 5000 --seed 1\n  \
        tally load-numstore --json      {\"clients\":8,\"requests\":80000,...,\"p99_ms\":0.52,...}"
)]
pub struct LoadNumstoreArgs {
    /// Number of clients, 1 to 100
    #[arg(long, value_name = "N", env = "TALLY_CLIENTS", hide_env_values = true, default_value_t = 8,
          value_parser = value_parser!(u8).range(1..=100))]
    pub clients: u8,

    /// Requests of each client
    #[arg(long, value_name = "N", env = "TALLY_REQUESTS", hide_env_values = true, default_value_t = 10_000,
          value_parser = value_parser!(u32).range(1..))]
    pub requests: u32,

    /// Requests a second, of all clients together [default: as fast as they are answered]
    #[arg(long, value_name = "PER_SECOND", env = "TALLY_RATE", hide_env_values = true,
          value_parser = value_parser!(u32).range(1..))]
    pub rate: Option<u32>,

    /// Number of keys, 1 to 50,000 (the server's limit)
    #[arg(long, value_name = "N", env = "TALLY_KEYS", hide_env_values = true, default_value_t = 100,
          value_parser = value_parser!(u32).range(1..=KEYS_MAX as i64))]
    pub keys: u32,

    /// Runs with the same seed send the same requests [default: random]
    #[arg(long, value_name = "N", env = "TALLY_SEED", hide_env_values = true)]
    pub seed: Option<u64>,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Counts of the requests of one client, or of all, and their response times.
struct Outcome {
    set_num: u64,
    fact: u64,
    not_set: u64,
    hits: u64,
    nanoseconds: Histogram<u64>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    clients: u8,
    keys: u32,
    rate: Option<u32>,
    seed: u64,
    requests: u64,
    seconds: f64,
    requests_per_second: f64,
    set_num: u64,
    fact: u64,
    /// Factorials of keys that had no value yet.
    not_set: u64,
    hits: u64,
    /// Hits among the answered factorials; null if there was no such answer.
    hit_rate: Option<f64>,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
}

pub(super) async fn run(args: LoadNumstoreArgs) -> Result<ExitCode, Failure> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let server = &args.client.server;
    let connected = try_join_all((0..args.clients).map(|_| connect(server, &args.client.credentials))).await?;

    let bar = ProgressBar::new(u64::from(args.clients) * u64::from(args.requests)).with_style(
        style("{human_pos} of {human_len} requests, {rate} {wide_bar} {percent:>3}%").with_key("rate", rate),
    );
    let start = Instant::now();
    let mut running = JoinSet::new();
    for (index, channel) in (0..).zip(connected) {
        running.spawn(load(channel, server.clone(), Plan::of(&args, seed, index, start), bar.clone()));
    }
    let mut all = Outcome::new()?;
    // The first failure ends the other clients, too: dropping the set aborts them.
    while let Some(ended) = running.join_next().await {
        all.add(&ended.map_err(|panic| Failure::Internal(panic.to_string()))??)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let report = all.report(&args, seed, seconds);
    let mut out = io::stdout();
    if args.client.json {
        write_json(&mut out, &report)?;
    } else {
        report.print(&mut out, server)?;
        print_histogram(&mut out, &all.nanoseconds)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The rate for the progress bar. Indicatif's own has decimals.
fn rate(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    // A bar that cannot be drawn is not worth an error.
    let _ignored = write!(out, "{:.0}/s", state.per_sec());
}

/// What one client sends, and when.
struct Plan {
    requests: u32,
    keys: u32,
    random: fastrand::Rng,
    first_due: Instant,
    /// Time between two requests. `None`: each is due when the one before it is answered.
    interval: Option<Duration>,
}

impl Plan {
    fn of(args: &LoadNumstoreArgs, seed: u64, index: u64, start: Instant) -> Self {
        let interval = args.rate.map(|rate| Duration::from_secs_f64(f64::from(args.clients) / f64::from(rate)));
        // The clients take turns: their first requests are spread over one interval.
        let offset = interval.unwrap_or_default().mul_f64(index as f64 / f64::from(args.clients));
        // Clients of one run must not send the same requests.
        let random = fastrand::Rng::with_seed(seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        Self { requests: args.requests, keys: args.keys, random, first_due: start + offset, interval }
    }
}

/// Sends one client's requests, one after the other.
async fn load(channel: Connection, server: ServerAddr, mut plan: Plan, bar: ProgressBar) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::new()?;
    let mut numstore = NumStoreClient::new(channel);
    for index in 0..plan.requests {
        let mut due = Instant::now();
        if let Some(interval) = plan.interval {
            let planned = plan.first_due + interval * index;
            if planned > due {
                sleep_until(planned.into()).await;
                due = Instant::now(); // a timer that fires late is not the server's fault
            } else {
                due = planned;
            }
        }
        let key = format!("key{}", plan.random.u32(..plan.keys));
        if plan.random.bool() {
            let value = plan.random.i64(VALUES);
            let answer = numstore.set_num(SetNumRequest { key, value }).await;
            answer.map_err(|status| call_failure(&server, &status))?;
            outcome.set_num += 1;
        } else {
            let answer = numstore.fact(FactRequest { key: key.clone() }).await;
            outcome.count(&key, &answer.map_err(|status| call_failure(&server, &status))?.into_inner())?;
        }
        outcome.nanoseconds.saturating_record(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
        bar.inc(1);
    }
    Ok(outcome)
}

/// Whether it is the factorial of one of [`VALUES`].
fn is_possible(factorial: i64) -> bool {
    let mut product = 1;
    VALUES.into_iter().any(|value| {
        product *= value;
        product == factorial
    })
}

impl Outcome {
    fn new() -> Result<Self, Failure> {
        let nanoseconds = Histogram::new_with_max(NANOSECONDS_MAX, DIGITS);
        let nanoseconds = nanoseconds.map_err(|error| Failure::Internal(error.to_string()))?;
        Ok(Self { set_num: 0, fact: 0, not_set: 0, hits: 0, nanoseconds })
    }

    /// Checks and counts the answer to a Fact.
    fn count(&mut self, key: &str, answer: &FactResponse) -> Result<(), Failure> {
        self.fact += 1;
        let FactResponse { value, hit, error } = answer;
        if error.is_empty() && is_possible(*value) {
            self.hits += u64::from(*hit);
        } else if error.is_empty() {
            let (least, most) = (VALUES.start(), VALUES.end());
            let what = format!("{key}: {value} is not a factorial of {least} to {most}");
            return Err(Failure::WrongAnswer(what));
        } else if *error == format!("key \"{key}\" is not set") {
            self.not_set += 1;
        } else {
            return Err(Failure::Refused(error.clone()));
        }
        Ok(())
    }

    fn add(&mut self, other: &Self) -> Result<(), Failure> {
        self.set_num += other.set_num;
        self.fact += other.fact;
        self.not_set += other.not_set;
        self.hits += other.hits;
        self.nanoseconds.add(&other.nanoseconds).map_err(|error| Failure::Internal(error.to_string()))
    }

    fn report(&self, args: &LoadNumstoreArgs, seed: u64, seconds: f64) -> Report {
        let requests = self.nanoseconds.len();
        let answered = self.fact - self.not_set;
        let ms = |quantile| self.nanoseconds.value_at_quantile(quantile) as f64 / 1e6;
        Report {
            clients: args.clients,
            keys: args.keys,
            rate: args.rate,
            seed,
            requests,
            seconds,
            requests_per_second: requests as f64 / seconds,
            set_num: self.set_num,
            fact: self.fact,
            not_set: self.not_set,
            hits: self.hits,
            hit_rate: (answered > 0).then(|| self.hits as f64 / answered as f64),
            p50_ms: ms(0.5),
            p90_ms: ms(0.9),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
            max_ms: self.nanoseconds.max() as f64 / 1e6,
        }
    }
}

impl Report {
    fn print(&self, out: &mut impl Write, server: &ServerAddr) -> io::Result<()> {
        let Self { clients, keys, seed, seconds, set_num, fact, not_set, .. } = self;
        let (set_num, fact, not_set) = (HumanCount(*set_num), HumanCount(*fact), HumanCount(*not_set));
        let rate = self.rate.map_or(String::new(), |rate| format!(", {rate} requests a second asked for"));
        writeln!(out, "clients              {clients}, {keys} keys, seed {seed}{rate}, server {server}")?;
        writeln!(out, "requests             {} in {seconds:.2} s", HumanCount(self.requests))?;
        writeln!(out, "                     {set_num} SetNum, {fact} Fact, {not_set} of these of a key not set yet")?;
        writeln!(out, "requests a second    {:.0}", self.requests_per_second)?;
        match self.hit_rate {
            Some(rate) => writeln!(out, "cache hit rate       {:.1} %", 100.0 * rate)?,
            None => writeln!(out, "cache hit rate       - (no factorial was answered)")?,
        }
        for (name, ms) in [
            ("p50", self.p50_ms),
            ("p90", self.p90_ms),
            ("p99", self.p99_ms),
            ("p99.9", self.p999_ms),
            ("longest", self.max_ms),
        ] {
            writeln!(out, "{name:<7} response time {ms:>9.3} ms")?;
        }
        Ok(())
    }
}

/// The lines of the printed histogram: from, to (nanoseconds) and the number of requests that took that long. The ranges are
/// about equally wide on a logarithmic scale. A bucket of `nanoseconds` that crosses a border counts in the lower range, so
/// each request is in exactly one line.
fn lines(nanoseconds: &Histogram<u64>) -> Vec<(u64, u64, u64)> {
    let mut lines = Vec::new();
    let (mut from, mut below) = (0, 0);
    for to in (0..POWERS).flat_map(|power| STEPS.map(|step| step * 10_u64.pow(power))) {
        // Times above the histogram's maximum are in the last line.
        let count = if to < NANOSECONDS_MAX { nanoseconds.count_between(0, to - 1) } else { nanoseconds.len() };
        lines.push((from, to, count - below));
        (from, below) = (to, count);
    }
    lines
}

/// Prints how many requests took how long.
fn print_histogram(out: &mut impl Write, nanoseconds: &Histogram<u64>) -> io::Result<()> {
    const BAR_CHARS_MAX: usize = 60;
    const LINE_CHARS: usize = 42; // before the bar
    let width = if io::stdout().is_terminal() { Term::stdout().size().1.into() } else { 80 };
    let bar_chars = BAR_CHARS_MAX.min(usize::saturating_sub(width, LINE_CHARS + 1)).max(1) as u64;

    let lines = lines(nanoseconds);
    let is_empty = |(_, _, count): &&(u64, u64, u64)| *count == 0;
    let first = lines.iter().take_while(is_empty).count();
    let end = lines.len() - lines.iter().rev().take_while(is_empty).count();
    let most = lines.iter().map(|(_, _, count)| *count).max().unwrap_or(0).max(1);

    writeln!(out, "\n{:>24}{:>16}", "response time in ms", "requests")?;
    for (from, to, count) in lines.get(first..end).unwrap_or_default() {
        let bar: String = (0..(count * bar_chars).div_ceil(most)).map(|_| '#').collect();
        let (from, to, count) = (*from as f64 / 1e6, *to as f64 / 1e6, HumanCount(*count).to_string());
        let line = format!("{:>24}{count:>16}  {bar}", format!("{from} to {to}"));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_in_one_line_of_the_histogram() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut histogram = Histogram::<u64>::new_with_max(NANOSECONDS_MAX, DIGITS).expect("bounds");
        let mut requests = 0;
        // Values around every border, from below the first to beyond the last.
        for power in 0..=POWERS + 1 {
            for step in STEPS {
                for _ in 0..50 {
                    let border = step * 10_u64.pow(power);
                    histogram.saturating_record(border - border / 500 + random.u64(..border / 250));
                    requests += 1;
                }
            }
        }
        histogram.saturating_record(0);
        let lines = lines(&histogram);
        assert_eq!(lines.iter().map(|(_, _, count)| count).sum::<u64>(), requests + 1);
        assert!(lines.iter().all(|(from, to, count)| from < to && *count > 0));
        assert!(lines.is_sorted());
    }

    #[test]
    fn factorials_of_1_to_15_are_possible() {
        let possible = [1, 2, 6, 24, 3_628_800, 1_307_674_368_000];
        assert!(possible.into_iter().all(is_possible));
        assert!(![0, -1, 3, 121, 20_922_789_888_000].into_iter().any(is_possible));
    }
}
