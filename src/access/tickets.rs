//! Tickets for downloads: a browser that follows a link sends no header, so the page gets a ticket for the link first. A ticket
//! counts once, for one target, for a short time, and allows what its owner's token allows.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    identity::Identity,
    secret::{Secret, SecretHash},
};
use crate::limits::{TICKET_S, TICKETS_MAX, TICKETS_OF_ONE_MAX};

/// The tickets that were not used yet; the newest ones, if there are too many. One owner has a share of them, so that nobody
/// takes the tickets of all others away.
///
/// Nobody watches the channel. It is a value that is compared and changed in one step, so a wrong guess never takes a ticket
/// away, not even for a moment.
pub(crate) struct Tickets(watch::Sender<Slots>);

type Slots = [Option<Ticket>; TICKETS_MAX];

struct Ticket {
    secret: SecretHash,
    /// Path and query.
    target: SecretHash,
    owner: Identity,
    until: Instant,
}

impl Tickets {
    pub(crate) fn new() -> Self {
        Self(watch::channel([const { None }; TICKETS_MAX]).0)
    }

    /// A new ticket for a GET of this path and query.
    ///
    /// Errors: there are no random numbers.
    pub(crate) fn issue(&self, owner: Identity, target: &str) -> io::Result<String> {
        let secret = Secret::random()?;
        let until = Instant::now() + Duration::from_secs(TICKET_S);
        let ticket = Ticket { secret: secret.hash(), target: SecretHash::of(target.as_bytes()), owner, until };
        let mut slot = 0;
        self.0.send_modify(|slots| {
            slot = slot_for(slots, &ticket.owner);
            slots[slot] = Some(ticket);
        });
        Ok(format!("{slot}.{}", secret.expose()))
    }

    /// The owner of a ticket for this path and query. The ticket is used up afterwards.
    pub(crate) fn redeem(&self, text: &str, target: &str) -> Option<Identity> {
        let (slot, secret) = text.split_once('.')?;
        let slot: usize = slot.parse().ok()?;
        let (secret, target) = (SecretHash::of(secret.as_bytes()), SecretHash::of(target.as_bytes()));
        let mut redeemed = None;
        self.0.send_if_modified(|slots| {
            // Who guesses must not spend the ticket of somebody else.
            let is_it = |ticket: &mut Ticket| bool::from(ticket.secret.equals(&secret));
            redeemed = slots.get_mut(slot).and_then(|ticket| ticket.take_if(is_it));
            false
        });
        let Ticket { target: its_target, owner, until, .. } = redeemed?;
        (bool::from(its_target.equals(&target)) && Instant::now() < until).then_some(owner)
    }
}

/// Where the next ticket of an owner goes: to the place of its oldest one if it has its share, or else to an empty place, or
/// else to that of the oldest of all.
fn slot_for(slots: &Slots, owner: &Identity) -> usize {
    let is_own = |ticket: &&Option<Ticket>| ticket.as_ref().is_some_and(|ticket| ticket.owner.name == owner.name);
    let has_its_share = slots.iter().filter(is_own).count() >= TICKETS_OF_ONE_MAX;
    let candidates = slots.iter().enumerate().filter(|(_, ticket)| !has_its_share || is_own(ticket));
    // `None`, an empty place, comes before all times.
    let oldest = candidates.min_by_key(|(_, ticket)| ticket.as_ref().map(|ticket| ticket.until));
    oldest.map_or(0, |(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;
    use crate::access::scope::Scope;

    fn owner(name: &str) -> Identity {
        Identity::new(name, Scope::Read)
    }

    #[test]
    fn a_ticket_counts_once_and_for_its_target_alone() {
        let tickets = Tickets::new();
        let one = tickets.issue(owner("a"), "/x?y=1").expect("a ticket");
        let other = tickets.issue(owner("b"), "/x?y=1").expect("a ticket");
        assert_eq!(tickets.redeem(&one, "/x?y=1"), Some(owner("a")));
        assert_eq!(tickets.redeem(&one, "/x?y=1"), None, "it was used");
        assert_eq!(tickets.redeem(&other, "/x?y=2"), None);
        assert_eq!(tickets.redeem(&other, "/x?y=1"), None, "it was used for another target");
        let third = tickets.issue(owner("c"), "/x").expect("a ticket");
        let (slot, _secret) = third.split_once('.').expect("a slot");
        for wrong in ["", ".", "x", "999.a", &format!("{slot}."), &format!("{slot}.{}", "0".repeat(64))] {
            assert_eq!(tickets.redeem(wrong, "/x"), None, "{wrong:?}");
        }
        assert_eq!(tickets.redeem(&third, "/x"), Some(owner("c")), "guessing spends nothing");
    }

    #[test]
    fn a_ticket_that_is_too_old_counts_no_more() {
        let tickets = Tickets::new();
        let [late, in_time] = [(); 2].map(|()| tickets.issue(owner("a"), "/x").expect("a ticket"));
        tickets.0.send_modify(|slots| {
            let ticket = slots[0].as_mut().expect("the first");
            assert!(ticket.until > Instant::now() + Duration::from_secs(TICKET_S - 5));
            ticket.until = Instant::now();
        });
        assert_eq!(tickets.redeem(&late, "/x"), None);
        assert_eq!(tickets.redeem(&in_time, "/x"), Some(owner("a")));
    }

    #[test]
    fn the_oldest_tickets_make_room() {
        let tickets = Tickets::new();
        let issue = |number: usize| tickets.issue(owner(&number.to_string()), "/").expect("a ticket");
        let all: Vec<_> = (0..=TICKETS_MAX).map(issue).collect();
        let good: Vec<_> = all.iter().map(|ticket| tickets.redeem(ticket, "/").is_some()).collect();
        assert_eq!((good[0], good.iter().filter(|is_good| **is_good).count()), (false, TICKETS_MAX));
    }

    #[test]
    fn one_owner_takes_no_tickets_of_others_away() {
        let tickets = Tickets::new();
        let issue = |name: &str| tickets.issue(owner(name), "/").expect("a ticket");
        let honest: Vec<_> = (0..TICKETS_MAX - TICKETS_OF_ONE_MAX).map(|number| issue(&number.to_string())).collect();
        let greedy: Vec<_> = (0..10 * TICKETS_MAX).map(|_| issue("greedy")).collect();
        assert!(honest.iter().all(|ticket| tickets.redeem(ticket, "/").is_some()));
        let (old, new) = greedy.split_at(greedy.len() - TICKETS_OF_ONE_MAX);
        assert!(new.iter().all(|ticket| tickets.redeem(ticket, "/").is_some()), "its newest ones");
        assert!(old.iter().all(|ticket| tickets.redeem(ticket, "/").is_none()));
    }

    #[test]
    fn a_wrong_guess_never_takes_a_ticket_away() {
        let (tickets, guess) = (Tickets::new(), "0".repeat(64));
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        (0..TICKETS_MAX)
                            .for_each(|slot| assert!(tickets.redeem(&format!("{slot}.{guess}"), "/").is_none()));
                    }
                });
            }
            let honest = (0..20_000).filter(|_| {
                let ticket = tickets.issue(owner("a"), "/").expect("a ticket");
                tickets.redeem(&ticket, "/").is_some()
            });
            let good = honest.count();
            ended.store(true, Ordering::Relaxed);
            assert_eq!(good, 20_000);
        });
    }
}
