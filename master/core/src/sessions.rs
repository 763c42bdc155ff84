//! The last answers of each client: a mutation is carried out once, however often it is asked.

use crate::{Entry, Metadata};
use bincode::{Decode, Encode};
use common::limits::CLIENT_ANSWERS_MAX;
use common::wire::client_master::{MasterReply, Mutation};
use common::{Code, RequestId};
use std::sync::Arc;

/// What is remembered of a client.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct Client {
    /// Requests below this were answered and forgotten.
    lowest: u64,
    /// Answers from `lowest` on, by number.
    answers: Vec<(u64, Arc<MasterReply>)>,
    /// Log time of its last request.
    pub(crate) seen_ns: u64,
}

impl Metadata {
    /// Carries a mutation out, or repeats the answer it had.
    pub(crate) fn mutate_once(
        &mut self,
        entry: &Entry,
        request: RequestId,
        lowest: u64,
        mutation: &Mutation,
    ) -> MasterReply {
        let mut client = match self.clients.get(&request.client) {
            Some(client) => client.clone(),
            None if lowest == 1 => Client { lowest: 1, answers: vec![], seen_ns: 0 },
            None => return MasterReply::refused(Code::ClientEnded, request),
        };
        if request.seq < client.lowest {
            return MasterReply::refused(Code::OutsideWindow, request);
        }
        if let Ok(at) = client.answers.binary_search_by_key(&request.seq, |(seq, _)| *seq) {
            return (*client.answers[at].1).clone();
        }
        client.lowest = client.lowest.max(lowest.min(request.seq));
        if request.seq - client.lowest >= CLIENT_ANSWERS_MAX {
            return MasterReply::refused(Code::OutsideWindow, request);
        }
        if *mutation == Mutation::EndClient {
            self.clients.remove(&request.client);
            return MasterReply::Done;
        }
        let reply = self.mutate(entry, mutation);
        let floor = client.lowest;
        client.answers.retain(|(seq, _)| *seq >= floor);
        let at = client.answers.partition_point(|(seq, _)| *seq < request.seq);
        client.answers.insert(at, (request.seq, Arc::new(reply.clone())));
        client.seen_ns = self.clock_ns;
        self.clients.insert(request.client, client);
        reply
    }

    /// Whether this request was carried out, and its answer is remembered.
    pub fn is_answered(&self, request: RequestId) -> bool {
        let client = self.clients.get(&request.client);
        client.is_some_and(|c| c.answers.binary_search_by_key(&request.seq, |(seq, _)| *seq).is_ok())
    }

    /// Ends the clients that were last heard of before this log time.
    pub(crate) fn end_idle_clients(&mut self, before_ns: u64, budget: u32) {
        let idle = self.clients.iter().filter(|(_, c)| c.seen_ns < before_ns).map(|(id, _)| *id);
        for id in idle.take(budget as usize).collect::<Vec<_>>() {
            self.clients.remove(&id);
        }
    }
}
