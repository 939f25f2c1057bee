//! Quotas: how much the holder of a token may ask of the server, or an address while there are no tokens. A fair share for
//! each, beside the limits of the server as a whole.
//!
//! Each has an [`Account`] of a few atomic counters. The days are those of UTC, and a start of the server begins anew.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    error::Error,
    limits::{QUOTA_ADDRESSES_MAX, Quotas},
};

/// What one caller has used.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// When the calls so far are paid for, in microseconds since the ledger's start.
    calls_until_us: AtomicU64,
    uploads: AtomicU32,
    bytes: DayCounter,
    parts: DayCounter,
    totals: Totals,
}

/// What one token was used for since the start, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    calls: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
}

impl Totals {
    /// Calls, refused ones included.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Calls that were refused, for their scope or a quota.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Bytes of CSV that were added to the table.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Account {
    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    pub(crate) fn count_call(&self) {
        self.totals.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refusal(&self) {
        self.totals.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_bytes(&self, bytes: u64) {
        self.totals.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A count that begins anew each day. The upper 16 bits are the day, the others the count, so that both change at once.
#[derive(Debug, Default)]
struct DayCounter(AtomicU64);

const COUNT_BITS: u32 = 48;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const DAY_S: u64 = 24 * 60 * 60;

impl DayCounter {
    /// Adds to the count of a day, unless it would exceed the maximum. Returns whether it was added.
    fn add(&self, amount: u64, max: u64, day: u64) -> bool {
        let day = day & (u64::MAX >> COUNT_BITS);
        let added = |before: u64| {
            let count = if before >> COUNT_BITS == day { before & COUNT_MAX } else { 0 };
            let count = count.checked_add(amount).filter(|count| *count <= max.min(COUNT_MAX))?;
            Some(day << COUNT_BITS | count)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added).is_ok()
    }

    /// The count of a day.
    fn count(&self, day: u64) -> u64 {
        let count = self.0.load(Ordering::Relaxed);
        if count >> COUNT_BITS == day & (u64::MAX >> COUNT_BITS) { count & COUNT_MAX } else { 0 }
    }

    /// Takes back what was added on a day, if it is still that day.
    fn take_back(&self, amount: u64, day: u64) {
        let day = day & (u64::MAX >> COUNT_BITS);
        let less = |before: u64| {
            (before >> COUNT_BITS == day).then(|| day << COUNT_BITS | (before & COUNT_MAX).saturating_sub(amount))
        };
        let _another_day = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// The quotas, and the accounts of addresses. Those of tokens are kept with them.
pub(crate) struct Ledger {
    quotas: Quotas,
    started: Instant,
    /// Addresses whose hashes are equal share one. Empty if there are no quotas.
    addresses: Box<[Arc<Account>]>,
    hasher: ahash::RandomState,
}

impl Ledger {
    pub(crate) fn new(quotas: Quotas) -> Self {
        let accounts = if quotas == Quotas::default() { 0 } else { QUOTA_ADDRESSES_MAX };
        let addresses = (0..accounts).map(|_| Arc::default()).collect();
        Self { quotas, started: Instant::now(), addresses, hasher: ahash::RandomState::new() }
    }

    /// Whether there are any.
    pub(crate) fn has_quotas(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// The account of an address; of its network of 64 bits, if it is IPv6, because that is what a client can choose from.
    pub(crate) fn of_address(&self, address: IpAddr) -> Option<Arc<Account>> {
        let key = match address.to_canonical() {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits() >> 64 | 1 << 64,
        };
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % (self.addresses.len().max(1) as u64)).ok()?;
        self.addresses.get(index).map(Arc::clone)
    }

    /// Counts a call. Calls may come in a burst of as many as are allowed in a second (the generic cell rate algorithm).
    ///
    /// Errors: there are too many.
    pub(crate) fn call(&self, account: &Account) -> Result<(), Error> {
        const SECOND_US: u64 = 1_000_000;
        let Some(max) = self.quotas.calls_per_s else { return Ok(()) };
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX / 2);
        let cost = SECOND_US / u64::from(max);
        let paid = |until: u64| Some(until.max(now) + cost).filter(|until| until - now <= SECOND_US.max(cost));
        match account.calls_until_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid) {
            Ok(_before) => Ok(()),
            Err(_full) => Err(Error::Quota { limit: u64::from(max), what: "calls a second", retry_s: 1 }),
        }
    }
}

/// An account, and what it may use.
#[derive(Clone)]
pub(crate) struct Meter {
    account: Arc<Account>,
    quotas: Quotas,
    /// Seconds after which the call that was refused may be made again; 0 if none was.
    retry_s: Arc<AtomicU64>,
}

impl Meter {
    pub(crate) fn new(account: Arc<Account>, ledger: &Ledger) -> Self {
        Self { account, quotas: ledger.quotas, retry_s: Arc::default() }
    }

    /// Seconds after which the call may be made again, if a quota has ended it.
    pub(crate) fn retry_s(&self) -> Option<u64> {
        Some(self.retry_s.load(Ordering::Relaxed)).filter(|seconds| *seconds > 0)
    }

    fn used_up(&self, limit: u64, what: &'static str, retry_s: u64) -> Error {
        self.retry_s.store(retry_s, Ordering::Relaxed);
        self.account.count_refusal();
        Error::Quota { limit, what, retry_s }
    }

    /// Whether no more parts may be added today.
    pub(crate) fn has_no_part_left(&self) -> bool {
        self.quotas.parts_per_day.is_some_and(|max| self.account.parts.count(today().0) >= max)
    }

    /// Counts an upload that begins, and the part that it will add.
    ///
    /// Errors: there are too many.
    pub(crate) fn begin_upload(self, adds_part: bool) -> Result<MeteredUpload, Error> {
        let (day, retry_s) = today();
        if let Some(max) = self.quotas.uploads {
            let more = |uploads: u32| (uploads < max).then_some(uploads + 1);
            if self.account.uploads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
                return Err(self.used_up(u64::from(max), "uploads at once", 1));
            }
        }
        // From here on, dropping it gives the upload back.
        let mut upload = MeteredUpload { meter: self, part_of_day: None };
        if let Some(max) = upload.meter.quotas.parts_per_day.filter(|_| adds_part) {
            if !upload.meter.account.parts.add(1, max, day) {
                return Err(upload.meter.used_up(max, "parts a day", retry_s));
            }
            upload.part_of_day = Some(day);
        }
        Ok(upload)
    }

    /// Counts bytes that have arrived.
    ///
    /// Errors: there are too many.
    pub(crate) fn bytes(&self, count: usize) -> Result<(), Error> {
        let Some(max) = self.quotas.bytes_per_day else { return Ok(()) };
        let (day, retry_s) = today();
        if self.account.bytes.add(count as u64, max, day) {
            Ok(())
        } else {
            Err(self.used_up(max, "bytes a day", retry_s))
        }
    }
}

/// An upload that counts until it is dropped. Its part stays counted: if the client goes away, it may be added nevertheless.
pub(crate) struct MeteredUpload {
    meter: Meter,
    /// The day to which the part counts.
    part_of_day: Option<u64>,
}

impl MeteredUpload {
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// No part was added, so none counts.
    pub(crate) fn added_nothing(&self) {
        if let Some(day) = self.part_of_day {
            self.meter.account.parts.take_back(1, day);
        }
    }
}

impl Drop for MeteredUpload {
    fn drop(&mut self) {
        if self.meter.quotas.uploads.is_some() {
            self.meter.account.uploads.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The day, and the seconds until it ends. A clock before 1970 has day 0.
fn today() -> (u64, u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    (now / DAY_S, DAY_S - now % DAY_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: Result<impl Sized, Error>) -> String {
        result.map_or_else(|error| error.to_string(), |_| "ok".to_owned())
    }

    #[test]
    fn a_day_has_a_maximum_and_the_next_one_begins_anew() {
        let counter = DayCounter::default();
        assert!(counter.add(7, 10, 5) && counter.add(3, 10, 5) && !counter.add(1, 10, 5));
        assert!(counter.add(0, 10, 5), "nothing is always allowed");
        assert_eq!((counter.count(5), counter.count(6)), (10, 0));
        counter.take_back(4, 5);
        assert!(counter.add(4, 10, 5) && !counter.add(1, 10, 5));
        assert!(counter.add(10, 10, 6) && !counter.add(1, 10, 6));
        counter.take_back(10, 5);
        assert!(!counter.add(1, 10, 6), "another day");
        assert!(!counter.add(u64::MAX, u64::MAX, 7) && counter.add(COUNT_MAX, u64::MAX, 7));
    }

    #[test]
    fn calls_come_in_bursts_of_a_second() {
        let ledger = Ledger::new(Quotas { calls_per_s: Some(5), ..Quotas::default() });
        let account = Account::default();
        let allowed = (0..100).filter(|_| ledger.call(&account).is_ok()).count();
        assert!((5..=6).contains(&allowed), "{allowed}");
        let refused = (0..100).find_map(|_| ledger.call(&account).err()).expect("too many");
        assert_eq!(refused.to_string(), "the quota of 5 calls a second is used up: try again in 1 s");
        assert!(ledger.call(&Account::default()).is_ok(), "another account");
    }

    #[test]
    fn an_upload_counts_while_it_runs_and_its_part_if_it_was_added() {
        let quotas = Quotas { uploads: Some(2), parts_per_day: Some(2), bytes_per_day: Some(10), ..Quotas::default() };
        let ledger = Ledger::new(quotas);
        let meter = || Meter::new(ledger.of_address(IpAddr::from([192, 0, 2, 1])).expect("an account"), &ledger);
        let (one, other) = (meter().begin_upload(true).expect("the first"), meter().begin_upload(true).expect("two"));
        assert!(text(meter().begin_upload(true)).contains("2 uploads at once"));
        one.added_nothing();
        drop((one, other));
        drop(meter().begin_upload(true).expect("the one that failed does not count"));
        assert!(text(meter().begin_upload(true)).contains("2 parts a day"));
        assert_eq!(text(meter().begin_upload(false)), "ok", "a task adds no part");
        assert_eq!(text(meter().bytes(10)), "ok");
        let refused = meter();
        assert!(refused.retry_s().is_none() && text(refused.bytes(1)).contains("10 bytes a day"));
        assert!(refused.retry_s().is_some_and(|seconds| (1..=DAY_S).contains(&seconds)));
        assert!(!Ledger::new(Quotas::default()).has_quotas());
    }

    #[test]
    fn addresses_of_one_network_share_an_account() {
        let ledger = Ledger::new(Quotas { uploads: Some(1), ..Quotas::default() });
        let account = |text: &str| ledger.of_address(text.parse().expect("an address")).expect("an account");
        assert!(Arc::ptr_eq(&account("2001:db8::1"), &account("2001:db8::ffff:1")));
        assert!(Arc::ptr_eq(&account("192.0.2.1"), &account("::ffff:192.0.2.1")));
        let others =
            (0..=255).filter(|last| !Arc::ptr_eq(&account("192.0.2.1"), &account(&format!("198.51.100.{last}"))));
        assert!(others.count() > 200);
    }
}
