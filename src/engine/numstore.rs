//! NumStore, the service of the key/value course project, whose client program runs against this server unchanged: values by
//! key, their total, and an LRU cache of factorials. Everything is in memory only and is lost when the server ends.
//!
//! `state/numbers.rs` has the table that the lock guards. A call holds one of `NUMSTORE_CALLS_MAX` permits from beginning to
//! end. A factorial is computed without the lock, which is taken before and after that.
//!
//! Invariant: the total is the sum of all values, and fits in 64 bits.

use crate::{
    engine::{
        runtime::context::Context,
        state::{
            lock_check::assert_unlocked,
            numbers::{Factorial, Key},
        },
    },
    error::{Error, numstore::NumStoreError},
};

/// Sets a key's value, and returns the total of all values.
pub(crate) async fn set(context: &Context, key: Key, value: i64) -> Result<i64, Error> {
    let _permit = context.number_calls.acquire().await.ok().ok_or(Error::Draining)?;
    context.state.with(|state| state.numbers.set(key, value))
}

/// The factorial of a key's value.
///
/// Errors: the key was never set; its value is below 0; the factorial does not fit in 64 bits.
pub(crate) async fn factorial(context: &Context, key: Key) -> Result<Factorial, Error> {
    let _permit = context.number_calls.acquire().await.ok().ok_or(Error::Draining)?;
    let Some((value, cached)) = context.state.with(|state| state.numbers.look_up(&key)) else {
        return Err(NumStoreError::KeyNotSet { key: key.0.into_string() }.into());
    };
    if let Some(factorial) = cached {
        return Ok(Factorial { factorial, hit: true });
    }
    if value < 0 {
        return Err(NumStoreError::NoFactorial { key: key.0.into_string(), value }.into());
    }
    let Some(factorial) = factorial_of(value) else {
        return Err(NumStoreError::FactorialTooLarge { key: key.0.into_string(), value }.into());
    };
    // Another call may have stored the same factorial meanwhile, which does not matter.
    context.state.with(|state| state.numbers.keep(value, factorial));
    Ok(Factorial { factorial, hit: false })
}

/// `value`!, or `None` if it does not fit in 64 bits. 21! does not fit, so this multiplies at most 21 times.
fn factorial_of(value: i64) -> Option<i64> {
    assert_unlocked();
    (1..=value).try_fold(1, i64::checked_mul)
}

#[cfg(test)]
mod tests {
    use crate::engine::Engine;
    use std::{collections::BTreeMap, sync::mpsc, time::Duration};

    use tempfile::TempDir;

    use crate::{
        engine::state::numbers::Numbers,
        error::Kind,
        limits::{KEY_BYTES_MAX, KEYS_MAX, Limits, NUMSTORE_CALLS_MAX},
        model::durability::Durability,
    };

    use super::*;

    fn key(text: &str) -> Key {
        Key::try_from(text.to_owned()).expect("short enough")
    }

    async fn engine() -> (Engine, TempDir) {
        let folder = TempDir::new().expect("a temporary folder");
        let (engine, _) =
            Engine::open(folder.path(), Durability::None, Limits::default()).await.expect("a data folder");
        (engine, folder)
    }

    #[test]
    fn factorials_fit_up_to_twenty() {
        let factorials: Vec<_> = (0..=6).map(factorial_of).collect();
        assert_eq!(factorials, [1, 1, 2, 6, 24, 120, 720].map(Some));
        assert_eq!(factorial_of(20), Some(2_432_902_008_176_640_000));
        for too_large in [21, 22, 1_000_000_000_000, i64::MAX] {
            assert_eq!(factorial_of(too_large), None);
        }
    }

    /// A simple LRU cache: the numbers in the order of their last use.
    #[derive(Default)]
    struct Oracle(Vec<i64>);

    impl Oracle {
        fn hit(&mut self, value: i64) -> bool {
            let hit = self.0.iter().position(|&cached| cached == value).map(|at| self.0.remove(at)).is_some();
            self.0.push(value);
            if self.0.len() > 10 {
                self.0.remove(0);
            }
            hit
        }
    }

    #[tokio::test]
    async fn the_ten_factorials_used_last_are_cached() {
        let (engine, _folder) = engine().await;
        let mut oracle = Oracle::default();
        let mut random = fastrand::Rng::with_seed(5);
        let mut values = BTreeMap::new();
        let mut hits = 0;
        for step in 0..5000 {
            let name = format!("k{}", random.u8(..40));
            if random.bool() || !values.contains_key(&name) {
                let value = random.i64(0..=14 + step % 7);
                engine.set_number(key(&name), value).await.expect("fits");
                values.insert(name, value);
            } else {
                let hit = oracle.hit(values[&name]);
                let answer = engine.factorial(key(&name)).await.expect("0 to 20");
                assert_eq!((answer.hit, Some(answer.factorial)), (hit, factorial_of(values[&name])), "step {step}");
                hits += usize::from(hit);
            }
        }
        assert!((500..2000).contains(&hits), "{hits} hits: there must be many hits and many misses");
        // A value without a factorial does not change the cache.
        let before = engine.context.state.with(|state| state.numbers.factorials.len());
        engine.set_number(key("bad"), 21).await.expect("fits");
        assert!(engine.factorial(key("bad")).await.is_err());
        assert_eq!((before, engine.context.state.with(|state| state.numbers.factorials.len())), (10, 10));
        engine.close();
    }

    #[test]
    fn the_total_is_the_sum_or_an_error_that_changes_nothing() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut numbers = Numbers::new();
            let mut oracle: BTreeMap<String, i64> = BTreeMap::new();
            let (mut refused, mut accepted) = (0, 0);
            for _ in 0..500 {
                let name = format!("k{}", random.u8(..5));
                let edges = [i64::MIN, i64::MAX, i64::MAX / 2, i64::MIN / 2, -1, 0, 1, random.i64(..)];
                let value = edges[random.usize(..edges.len())];
                let mut after = oracle.clone();
                after.insert(name.clone(), value);
                let total: i128 = after.values().copied().map(i128::from).sum();
                match (numbers.set(key(&name), value), i64::try_from(total)) {
                    (Ok(actual), Ok(expected)) => {
                        assert_eq!(actual, expected, "seed {seed}");
                        oracle = after;
                        accepted += 1;
                    }
                    (Err(Error::NumStore(NumStoreError::TotalOverflow { key, total: actual })), Err(_)) => {
                        assert_eq!((key, actual), (name, total), "seed {seed}");
                        refused += 1;
                    }
                    (actual, expected) => panic!("seed {seed}: {actual:?} for {expected:?}"),
                }
            }
            assert!(refused > 10 && accepted > 10, "seed {seed}: {refused} refused, {accepted} accepted");
        }
    }

    #[test]
    fn keys_are_bounded_in_length_and_number() {
        assert!(Key::try_from("é".repeat(KEY_BYTES_MAX / 2)).is_ok());
        let error = Key::try_from("é".repeat(KEY_BYTES_MAX / 2) + "x").expect_err("a byte too long");
        assert_eq!(error.to_string(), "the key has 129 bytes, at most 128 are allowed");

        let mut numbers = Numbers::new();
        let capacity = numbers.values.capacity();
        for index in 0..KEYS_MAX {
            numbers.set(key(&index.to_string()), 1).expect("room");
        }
        assert_eq!(numbers.values.capacity(), capacity, "the map grew under the lock");
        let error = numbers.set(key("one more"), 1).expect_err("a key too many");
        assert_eq!(error.to_string(), "there are 50000 keys, which is the limit");
        assert_eq!(numbers.set(key("7"), 2).expect("a known key"), 50_001);
    }

    /// While the test holds the lock, every call that has a permit blocks its thread. There is one thread more than permits,
    /// so that all other calls can begin, and wait for a permit without blocking a thread. A fifth call with a permit would
    /// block the last thread, and so would a call that gives up its permit too early.
    #[test]
    fn four_calls_compute_at_once() {
        const CALLS: usize = 16;
        for is_set in [true, false] {
            let threads = NUMSTORE_CALLS_MAX + 1;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .enable_all()
                .build()
                .expect("threads");
            let (engine, _folder) = runtime.block_on(engine());
            runtime.block_on(engine.set_number(key("five"), 5)).expect("fits");
            let (tx, rx) = mpsc::channel();
            let call = |index: usize| {
                let (engine, tx) = (engine.clone(), tx.clone());
                runtime.spawn(async move {
                    tx.send(()).expect("received");
                    if is_set {
                        engine.set_number(key(&index.to_string()), 1).await.map(drop)
                    } else {
                        engine.factorial(key("five")).await.map(drop)
                    }
                })
            };
            let calls: Vec<_> = engine.context.state.with(|_| {
                let calls = (0..CALLS).map(call).collect();
                for _ in 0..CALLS {
                    rx.recv_timeout(Duration::from_secs(20)).expect("more than four calls compute");
                }
                while engine.context.number_calls.available_permits() > 0 {
                    std::thread::yield_now(); // the last of the four is about to take its permit
                }
                calls
            });
            for call in calls {
                runtime.block_on(call).expect("no panic").expect("answered");
            }
            assert_eq!((NUMSTORE_CALLS_MAX, engine.context.number_calls.available_permits()), (4, 4));
            engine.close();
        }
    }

    #[tokio::test]
    async fn a_closed_engine_refuses_calls() {
        let (engine, _folder) = engine().await;
        engine.set_number(key("five"), 5).await.expect("fits");
        engine.close();
        assert!(matches!(engine.set_number(key("five"), 6).await, Err(Error::Draining)));
        assert!(matches!(engine.factorial(key("five")).await, Err(Error::Draining)));
    }

    #[tokio::test]
    async fn a_factorial_under_the_lock_stops_a_test_build() {
        let (engine, _folder) = engine().await;
        let under = || engine.context.state.with(|_| factorial_of(5));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(under)).is_err(), "it was not detected");
        engine.close();
    }

    #[tokio::test]
    async fn values_without_a_factorial_are_errors() {
        let (engine, _folder) = engine().await;
        for (value, expected) in [
            (None, "key \"a\\n\" is not set"),
            (Some(-1), "key \"a\\n\": -1 has no factorial"),
            (Some(i64::MIN), "key \"a\\n\": -9223372036854775808 has no factorial"),
            (Some(21), "key \"a\\n\": the factorial of 21 does not fit in 64 bits"),
            (Some(i64::MAX), "key \"a\\n\": the factorial of 9223372036854775807 does not fit in 64 bits"),
        ] {
            if let Some(value) = value {
                engine.set_number(key("a\n"), value).await.expect("fits");
            }
            let error = engine.factorial(key("a\n")).await.expect_err("has none");
            assert_eq!((error.to_string().as_str(), error.kind()), (expected, Kind::Input));
        }
        engine.close();
    }
}
