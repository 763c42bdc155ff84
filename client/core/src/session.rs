//! Request numbers: rising, and the lowest that has not been answered.

use common::{ClientId, RequestId};
use std::collections::BTreeSet;

/// The numbers of one client.
#[derive(Clone, Debug)]
pub struct Session {
    client: ClientId,
    next: u64,
    unanswered: BTreeSet<u64>,
}

/// A request's name, and the lowest unanswered one when it was last sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its name, through every retry.
    pub request: RequestId,
    /// What the server may forget: everything below.
    pub lowest: u64,
}

impl Session {
    /// A new client.
    pub fn new(client: ClientId) -> Session {
        Session { client, next: 1, unanswered: BTreeSet::new() }
    }

    /// Who.
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// The next request.
    pub fn begin(&mut self) -> RequestId {
        let seq = self.next;
        self.next += 1;
        self.unanswered.insert(seq);
        RequestId { client: self.client, seq }
    }

    /// As it is sent now.
    pub fn ticket(&self, request: RequestId) -> Ticket {
        let lowest = self.unanswered.first().copied().unwrap_or(request.seq);
        Ticket { request, lowest: lowest.min(request.seq) }
    }

    /// It is answered, or given up for good.
    pub fn end(&mut self, request: RequestId) {
        self.unanswered.remove(&request.seq);
    }

    /// Whether another request would put more than `window` numbers between the lowest
    /// unanswered and itself.
    pub fn is_full(&self, window: u64) -> bool {
        self.unanswered.first().is_some_and(|lowest| self.next - lowest >= window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_counted_from_the_lowest_unanswered() {
        let mut session = Session::new(ClientId(7));
        let first = session.begin();
        let second = session.begin();
        session.end(second);
        assert_eq!(session.ticket(first).lowest, 1);
        assert!(!session.is_full(3));
        assert!(session.is_full(2));
        session.end(first);
        assert!(!session.is_full(1));
        let third = session.begin();
        assert_eq!(session.ticket(third), Ticket { request: third, lowest: 3 });
    }
}
