//! What a master does as leader: proposes entries with stamps, answers reads after a ReadIndex
//! round, counts the sessions of stores.

use crate::groups::Groups;
use crate::locks::Locks;
use crate::raft::network::Acknowledged;
use crate::raft::spare::Spares;
use crate::raft::state_machine::Shared;
use crate::raft::{Logged, Raft, TypeConfig};
use common::limits::{ELECTION_MS_MAX, NAMELESS_MS, SESSION_MS};
use common::wire::chunk_master::CutsHeard;
use common::wire::client_master::RepairItem;
use common::{ChunkHandle, ClientId, Code, SessionId, StoreId, Time};
use futures::StreamExt;
use master_core::{Command, Complaint, Entry, Reply, Standing, Suspicion};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{BasicNode, ReadPolicy, ServerState};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// The log's time begins here: what counts as older than something is so in a new cluster, too.
const FIRST_STAMP_NS: u64 = NAMELESS_MS * 1_000_000;

/// Why this master does not answer.
#[derive(Clone, Debug)]
pub struct NotHere {
    /// `NotLeader` or `Unavailable`.
    pub code: Code,
    /// The leader's address, if known.
    pub leader: Option<String>,
}

const UNAVAILABLE: NotHere = NotHere { code: Code::Unavailable, leader: None };
const NOT_LEADER: NotHere = NotHere { code: Code::NotLeader, leader: None };

/// An acknowledgement by a quorum that is not older stands for a round: half of the followers' lease, whatever
/// their clocks do.
const READ_LEASE_MS: u64 = ELECTION_MS_MAX / 2;
/// Commands that wait for their group; more wait with who brings them.
const PROPOSALS_MAX: usize = 4096;
/// A proposal or a round that takes longer has no quorum.
const QUORUM_LIMIT: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Sessions {
    /// Under which term these were counted.
    term: u64,
    /// When this process began to lead in that term: every session counts as renewed then.
    began: Option<Instant>,
    /// The log's time then.
    clock_ns: u64,
    renewed: BTreeMap<StoreId, (SessionId, Instant)>,
    /// The last snapshot that stores know of.
    snapshots: BTreeMap<StoreId, (SessionId, u64)>,
    /// What primaries complain of.
    suspicion: Suspicion,
    /// When the log was last told that a store is doubted, or is not.
    told: BTreeMap<(StoreId, bool), Instant>,
    /// When holders of claims were last heard of.
    holders: BTreeMap<ClientId, Instant>,
}

/// The leader's side of a master.
pub struct Leader {
    /// Raft.
    pub raft: Raft,
    /// The state, for queries after a round.
    pub state: Shared,
    /// Chunks that lack members, and how many there are: as the steward last saw it.
    pub repairs: Mutex<(Vec<RepairItem>, u64)>,
    /// Who waits for locks, and who shall give some back.
    pub locks: Arc<Locks>,
    sessions: Mutex<Sessions>,
    born: Instant,
    waiting: Mutex<Vec<oneshot::Sender<Result<(), NotHere>>>>,
    wake: Notify,
    proposals: mpsc::Sender<Proposal>,
    acknowledged: Arc<Acknowledged>,
    /// How fast followers answer.
    pub spares: Arc<Spares>,
    /// For how long an acknowledgement by a quorum stands for a ReadIndex round.
    lease: Duration,
    /// In this term leadership was last offered, to this master: from here on it is another's.
    offered: watch::Sender<(u64, u64)>,
}

/// A command that waits to be put into the log.
struct Proposal {
    command: Command,
    /// Only in this term.
    term: Option<u64>,
    answer: oneshot::Sender<Result<Reply, NotHere>>,
}

impl Leader {
    /// Starts the tasks that run ReadIndex rounds and put commands into the log.
    pub fn start(
        raft: Raft,
        state: Shared,
        acknowledged: Arc<Acknowledged>,
        spares: Arc<Spares>,
        time_scale: u64,
    ) -> io::Result<Arc<Leader>> {
        let (proposals, queue) = mpsc::channel(PROPOSALS_MAX);
        let leader = Arc::new(Leader {
            raft,
            state,
            repairs: Mutex::default(),
            locks: Arc::default(),
            sessions: Mutex::default(),
            born: Instant::now(),
            waiting: Mutex::default(),
            wake: Notify::new(),
            proposals,
            acknowledged,
            spares,
            lease: Duration::from_millis(READ_LEASE_MS * time_scale),
            offered: watch::Sender::default(),
        });
        tokio::spawn(leader.clone().rounds());
        tokio::spawn(leader.clone().groups(Groups::new(queue)?));
        Ok(leader)
    }

    /// Whether no other master can lead now, and all that was acknowledged is in the state: a quorum has just followed
    /// this one, and grants no vote within `ELECTION_MS_MAX` of that. (docs/decisions/0019)
    fn holds_lease(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let term = metrics.current_term;
        let groups = metrics.membership_config.membership().get_joint_config();
        metrics.state == ServerState::Leader
            && metrics.last_applied.is_some_and(|id| id.leader_id.term == term)
            && self.offered.borrow().0 != term
            && self.acknowledged.by_quorum(metrics.id, term, self.lease, groups)
    }

    /// Offers leadership to another master, which need not wait until the lease is over: from here on this one
    /// answers nothing more in this term, and neither do those that wait for it.
    pub async fn offer(&self, to: u64) -> Result<(), Fatal<TypeConfig>> {
        if let Some(term) = self.term() {
            self.offered.send_replace((term, to));
        }
        self.raft.trigger().transfer_leader(to).await
    }

    /// Who leads, as far as this master knows. It does not ask Raft, which may itself wait for a disk.
    pub fn leads(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match (metrics.state, *self.offered.borrow()) {
            (ServerState::Leader, (term, to)) if term == metrics.current_term => Some(to),
            (ServerState::Leader, _) => Some(metrics.id),
            _ => metrics.current_leader.filter(|leader| *leader != metrics.id),
        }
    }

    /// Where to go instead, if this master does not lead, or has offered leadership.
    fn elsewhere(&self) -> Option<NotHere> {
        let leads = self.leads();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if leads == Some(metrics.id) {
            return None;
        }
        let node = leads.and_then(|id| metrics.membership_config.membership().get_node(&id));
        Some(NotHere { code: Code::NotLeader, leader: node.map(|node| node.addr.clone()) })
    }

    /// Does something as leader, but not longer than this master is the leader by its own will.
    async fn while_here<T>(&self, work: impl Future<Output = Result<T, NotHere>>) -> Result<T, NotHere> {
        let mut offered = self.offered.subscribe();
        if let Some(elsewhere) = self.elsewhere() {
            return Err(elsewhere);
        }
        tokio::select! {
            done = work => done,
            _ = offered.changed() => Err(self.elsewhere().unwrap_or(NOT_LEADER)),
        }
    }

    /// One ReadIndex round after another, each for all that came before it began.
    async fn rounds(self: Arc<Self>) {
        loop {
            let waiting = std::mem::take(&mut *self.waiting.lock().expect("never poisoned"));
            if waiting.is_empty() {
                self.wake.notified().await;
                continue;
            }
            let round = async {
                let round = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
                match tokio::time::timeout(QUORUM_LIMIT, round).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(f)))) => {
                        Err(not_leader(f))
                    }
                    Ok(Err(_)) | Err(_) => Err(UNAVAILABLE),
                }
            };
            let outcome = self.while_here(round).await;
            for waiter in waiting {
                // Who gave up does not want to know.
                let _ = waiter.send(outcome.clone());
            }
        }
    }

    /// Waits until the state is linearizable: at once under a lease, else for a round that begins after this call.
    pub async fn round(&self) -> Result<(), NotHere> {
        if self.holds_lease() {
            return Ok(());
        }
        let (tell, told) = oneshot::channel();
        self.waiting.lock().expect("never poisoned").push(tell);
        self.wake.notify_one();
        told.await.unwrap_or(Err(UNAVAILABLE))
    }

    /// Puts a command into the log and gives the answer of its application. With a term, only
    /// while this master leads in just that term: the decision was made by its count.
    pub async fn propose(&self, command: Command, term: Option<u64>) -> Result<Reply, NotHere> {
        let (answer, answered) = oneshot::channel();
        let proposed = async {
            let proposal = Proposal { command, term, answer };
            self.proposals.send(proposal).await.ok()?;
            answered.await.ok()
        };
        let done = tokio::time::timeout(QUORUM_LIMIT, proposed).await;
        done.ok().flatten().unwrap_or_else(|| Err(self.elsewhere().unwrap_or(UNAVAILABLE)))
    }

    /// Puts what is proposed into the log.
    async fn groups(self: Arc<Self>, mut groups: Groups<Proposal>) {
        loop {
            let group = groups.next().await;
            let len = group.len();
            if len == 0 {
                break;
            }
            self.commit(group).await;
            groups.done(len);
        }
    }

    async fn commit(&self, group: Vec<Proposal>) {
        let term = self.term();
        let (mut entries, mut answers) = (vec![], vec![]);
        for proposal in group {
            if proposal.term.is_some() && proposal.term != term {
                // Who gave up does not want to know.
                let _ = proposal.answer.send(Err(NOT_LEADER));
                continue;
            }
            let (stamp_ns, wall_ns, salt) = (self.stamp_ns(), wall_ns(), rand::random());
            entries.push(Logged(Arc::new(Entry { stamp_ns, wall_ns, salt, command: proposal.command })));
            answers.push(proposal.answer);
        }
        if entries.is_empty() {
            return;
        }
        {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            self.spares.voters(metrics.id, metrics.membership_config.membership().get_joint_config());
        }
        let written = async {
            let written = self.raft.client_write_many(entries).await;
            let mut written = written.map_err(|_| UNAVAILABLE)?;
            for answer in answers {
                let done = match written.next().await {
                    Some(Ok(Ok(done))) => Ok(done.response.0.expect("a command has an answer")),
                    Some(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => Err(not_leader(forward)),
                    _ => Err(UNAVAILABLE),
                };
                let _ = answer.send(done);
            }
            Ok(())
        };
        // If it comes to nothing, who waits hears of it by its answer being dropped.
        let _ = self.while_here(written).await;
    }

    /// The term in which this master leads, if it does, and has not offered that to another.
    pub fn term(&self) -> Option<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let term = metrics.vote.leader_id.term;
        (metrics.state == ServerState::Leader && self.offered.borrow().0 != term).then_some(term)
    }

    /// The log's time: it goes on from the last stamp by this machine's monotonic clock.
    pub fn stamp_ns(&self) -> u64 {
        let state_ns = self.state.read().expect("never poisoned").clock_ns();
        let sessions = self.sessions.lock().expect("never poisoned");
        let elapsed = sessions.began.map_or(0, |began| began.elapsed().as_nanos() as u64);
        state_ns.max(sessions.clock_ns + elapsed)
    }

    // --- sessions ------------------------------------------------------------------------

    /// Brings the count in line with the term: whoever just began to lead counts every session as
    /// renewed now. Gives the term, if this master leads.
    pub fn begin_if_new(&self) -> Option<u64> {
        let term = self.term()?;
        let mut sessions = self.sessions.lock().expect("never poisoned");
        if sessions.began.is_none() || sessions.term != term {
            let clock_ns = self.state.read().expect("never poisoned").clock_ns().max(FIRST_STAMP_NS);
            *sessions = Sessions { term, began: Some(Instant::now()), clock_ns, ..Sessions::default() };
        }
        Some(term)
    }

    /// How long this process has led.
    pub fn led_for(&self) -> Duration {
        self.begin_if_new();
        let sessions = self.sessions.lock().expect("never poisoned");
        sessions.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// A store's heartbeat was received then.
    pub fn renewed(&self, store: StoreId, session: SessionId, received: Instant) {
        self.begin_if_new();
        let mut sessions = self.sessions.lock().expect("never poisoned");
        let entry = sessions.renewed.entry(store).or_insert((session, received));
        if entry.0 != session || entry.1 < received {
            *entry = (session, received);
        }
    }

    /// A store knows of the snapshots up to this one.
    pub fn knows_snapshot(&self, store: StoreId, session: SessionId, number: u64) {
        self.sessions.lock().expect("never poisoned").snapshots.insert(store, (session, number));
    }

    /// Whether every store that has a session knows of a snapshot.
    pub fn all_know(&self, number: u64) -> bool {
        self.begin_if_new();
        let state = self.state.read().expect("never poisoned");
        let sessions = self.sessions.lock().expect("never poisoned");
        let mut up = state.all_stores().filter_map(|(id, s)| Some((id, s.session()?)));
        up.all(|(id, session)| {
            sessions.snapshots.get(&id).is_some_and(|(of, known)| *of == session && *known >= number)
        })
    }

    /// Up to where a store has heard of cuts when it is told this, and the chunks that it leads of those that it had not heard
    /// of; nothing, if that is not known.
    pub fn cuts_since(&self, store: StoreId, heard: CutsHeard) -> (CutsHeard, Option<Vec<ChunkHandle>>) {
        // This one may have been a follower meanwhile.
        let Some(term) = self.begin_if_new() else { return (CutsHeard::default(), None) };
        self.state.read().expect("never poisoned").cuts_for(store, term, heard)
    }

    /// How long ago a store was heard of in its session.
    pub fn silent_for(&self, store: StoreId, session: SessionId) -> Duration {
        self.begin_if_new();
        let sessions = self.sessions.lock().expect("never poisoned");
        let heard = sessions.renewed.get(&store).filter(|(s, _)| *s == session).map(|(_, at)| *at);
        heard.or(sessions.began).map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// A holder of claims was heard of then.
    pub fn holder_heard(&self, holder: ClientId, at: Instant) {
        self.begin_if_new();
        let mut sessions = self.sessions.lock().expect("never poisoned");
        let heard = sessions.holders.entry(holder).or_insert(at);
        *heard = at.max(*heard);
    }

    /// The holders that have not been heard of for so long.
    pub fn silent_holders(&self, limit: Duration) -> Vec<ClientId> {
        self.begin_if_new();
        let state = self.state.read().expect("never poisoned");
        let mut sessions = self.sessions.lock().expect("never poisoned");
        sessions.holders.retain(|holder, _| state.is_holder(*holder));
        self.locks.keep(|holder| state.is_holder(holder));
        let Some(began) = sessions.began else { return vec![] };
        let heard = |holder: &ClientId| *sessions.holders.get(holder).unwrap_or(&began);
        state.holders().filter(|holder| heard(holder).elapsed() > limit).collect()
    }

    /// A holder claims nothing any more; with a term, only while this master leads in just that one.
    pub async fn end_locks(&self, holder: ClientId, term: Option<u64>) -> Result<(), NotHere> {
        let claimed = self.state.read().expect("never poisoned").claimed_by(holder);
        self.propose(Command::EndLocks { holder }, term).await?;
        self.locks.ended(holder, &claimed);
        Ok(())
    }

    /// What is left of a session, by this count, in milliseconds, rounded up.
    pub fn remaining_ms(&self, store: StoreId, session: SessionId) -> u64 {
        let silent = self.silent_for(store, session);
        let left = Duration::from_millis(SESSION_MS).saturating_sub(silent);
        left.as_millis() as u64 + u64::from(!left.is_zero())
    }

    /// The time by which complaints are counted.
    fn now(&self) -> Time {
        Time(self.born.elapsed().as_nanos() as u64)
    }

    /// A member's copy has rotted, it says: whether it has said so for long enough.
    pub fn rot_is_believed(&self, store: StoreId) -> bool {
        let mut sessions = self.sessions.lock().expect("never poisoned");
        sessions.suspicion.rot_is_believed(self.now(), store)
    }

    /// A primary complains of members of a chunk: who goes.
    pub async fn judge(
        &self,
        accuser: StoreId,
        accused: &[StoreId],
        what: Complaint,
        members: &[StoreId],
        standing: &BTreeMap<StoreId, Standing>,
    ) -> Vec<StoreId> {
        let verdict = {
            let mut sessions = self.sessions.lock().expect("never poisoned");
            let of = |id| standing.get(&id).copied().unwrap_or(Standing::Gone);
            sessions.suspicion.judge(self.now(), accuser, accused, what, members, of)
        };
        for store in verdict.doubt {
            if self.tell_doubt(store, true).await {
                tracing::warn!(%store, %accuser, ?accused, ?what, "it seems to be sick");
            }
        }
        verdict.remove
    }

    /// Takes back the doubts that nothing has confirmed for a while.
    pub async fn end_doubts(&self) {
        let doubted: Vec<StoreId> = {
            let state = self.state.read().expect("never poisoned");
            state.all_stores().filter(|(_, s)| s.doubted).map(|(id, _)| id).collect()
        };
        for store in doubted {
            let over = {
                let mut sessions = self.sessions.lock().expect("never poisoned");
                sessions.suspicion.doubt_is_over(self.now(), store)
            };
            if over && self.tell_doubt(store, false).await {
                tracing::info!(%store, "nobody complains of it any more");
            }
        }
    }

    /// Whether that was news.
    async fn tell_doubt(&self, store: StoreId, doubted: bool) -> bool {
        let differs = {
            let state = self.state.read().expect("never poisoned");
            state.store(store).is_some_and(|s| s.doubted != doubted)
        };
        // Complaints come from many chunks at a time, and it takes a while until the log says so.
        let is_news = differs && {
            let mut sessions = self.sessions.lock().expect("never poisoned");
            let before = sessions.told.insert((store, doubted), Instant::now());
            before.is_none_or(|before| before.elapsed() > QUORUM_LIMIT)
        };
        if is_news {
            // Without a quorum nothing is decided; a later complaint tries again.
            let _ = self.propose(Command::Doubt { store, doubted }, None).await;
        }
        is_news
    }
}

fn not_leader(forward: ForwardToLeader<TypeConfig>) -> NotHere {
    NotHere { code: Code::NotLeader, leader: forward.leader_node.map(|n: BasicNode| n.addr) }
}

fn wall_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}
