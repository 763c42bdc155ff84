//! Finds the leading master, and asks it until it answers. Clients and chunkservers do so alike.

use crate::{Conn, NetError, Patience};
use common::limits::{LOCK_WAIT_MS, MASTER_SILENT_MS};
use common::wire::{Caller, FromMaster, Message};
use common::{ClusterId, Code, Refusal};
use futures::stream::{FuturesUnordered, StreamExt};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// One master answers within this, or is asked again, or another: a little longer than an election. Requests are carried out
/// once, however often they are asked.
const CALL_LIMIT: Duration = Duration::from_millis(1200);
/// A change of the group of masters is answered within this: a new one may have to get a snapshot first.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// A connection to a master is made within this.
const DIAL_LIMIT: Duration = Duration::from_millis(500);
/// A master that does not lead says so at once: one that has not within this is taken for the leader.
const REFUSES_WITHIN: Duration = Duration::from_millis(100);
/// While a leader is looked for, each next master is asked so much after the one before it.
const STAGGER: Duration = Duration::from_millis(20);
/// Between two questions to the same master while a leader is looked for, at first and at most; at random up to half less.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(80));
/// Most addresses of masters that are remembered.
const ADDRS_MAX: usize = 64;

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It comes as soon as it can.
    Short,
    /// The master may wait for `LOCK_WAIT_MS` until there is something to tell.
    Told,
    /// The group of masters changes, which may take long: nobody else is asked meanwhile.
    Change,
}

impl Wait {
    /// When nothing at all comes from the leader, the others are asked, too; and when no answer comes, again.
    fn patience(self) -> Patience {
        let silent = Duration::from_millis(MASTER_SILENT_MS);
        match self {
            Wait::Short => Patience { quiet: silent, most: CALL_LIMIT },
            Wait::Told => Patience { quiet: silent + Duration::from_millis(LOCK_WAIT_MS), most: CALL_LIMIT },
            Wait::Change => Patience { quiet: CHANGE_LIMIT, most: CHANGE_LIMIT },
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// In time; whether the request was carried out is not known.
    #[error("no leading master answered within {ms} ms (last: {last})")]
    Late {
        /// How long it was asked.
        ms: u64,
        /// What came of the last try.
        last: String,
    },
    /// All masters speak another version, or are of another cluster: they will never answer otherwise.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What came of asking.
enum Asked<A> {
    Answered(A),
    /// There is another leader now, or none, and why.
    Again(String),
    /// As of `Unanswered`.
    Refused(Refusal),
}

/// What came of asking one master.
enum Visited<A> {
    Answered(Conn, A),
    /// It does not lead, or did not answer: the connection to it, if there is one, and whom it names.
    Again {
        conn: Option<Conn>,
        leader: Option<String>,
    },
}

/// The masters of a cluster.
pub struct Masters {
    caller: Caller,
    addrs: Mutex<Vec<String>>,
    /// The one that was asked for, or the first that answered: no other is spoken to.
    cluster: Mutex<ClusterId>,
    /// The last snapshot that this caller has heard of.
    snapshot: Arc<AtomicU64>,
    leader: watch::Sender<Option<Conn>>,
    /// Who holds it looks for a leader; the others wait for what it finds.
    search: tokio::sync::Mutex<()>,
    next: AtomicUsize,
}

/// One search for a leader.
struct Search<'a, Q> {
    request: &'a Q,
    /// For so long the answer of one master is waited for.
    most: Duration,
    /// A leader that is silent, and has been asked.
    silent: Option<&'a str>,
    /// Masters that are being asked.
    visited: Mutex<Vec<String>>,
    /// What came of the last try.
    last: Mutex<String>,
}

impl Masters {
    /// Some of them, or all; those that they name are found. With `cluster` 0 they may be of any.
    pub fn new(caller: Caller, addrs: Vec<String>, cluster: ClusterId) -> Masters {
        Masters {
            caller,
            addrs: Mutex::new(addrs),
            cluster: Mutex::new(cluster),
            snapshot: Arc::default(),
            leader: watch::Sender::new(None),
            search: tokio::sync::Mutex::new(()),
            next: AtomicUsize::new(0),
        }
    }

    /// The cluster; 0 before the first answer.
    pub fn cluster(&self) -> ClusterId {
        *self.cluster.lock().expect("never poisoned")
    }

    /// The number of the last snapshot that was heard of, for connections to stores.
    pub fn snapshot(&self) -> Arc<AtomicU64> {
        self.snapshot.clone()
    }

    /// A connection to one of them.
    pub async fn dial(&self, addr: &str) -> Result<Conn, NetError> {
        Conn::dial_after(addr, self.caller.clone(), self.cluster(), DIAL_LIMIT, self.snapshot()).await
    }

    /// Asks until a leader answers or the deadline passes.
    pub async fn ask<Q: Message, A: FromMaster>(
        &self,
        request: &Q,
        wait: Wait,
        deadline: Instant,
    ) -> Result<A, Unanswered> {
        self.ask_patiently(request, wait.patience(), deadline).await
    }

    async fn ask_patiently<Q: Message, A: FromMaster>(
        &self,
        request: &Q,
        patience: Patience,
        deadline: Instant,
    ) -> Result<A, Unanswered> {
        let began = Instant::now();
        let mut last = String::from("nobody was asked");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Unanswered::Late { ms: began.elapsed().as_millis() as u64, last });
            }
            let patience = Patience { quiet: patience.quiet.min(left), most: patience.most.min(left) };
            let asked = match self.leader() {
                Some(leader) => self.ask_leader(&leader, request, patience).await,
                None => Box::pin(self.search((None, None), request, patience, left)).await,
            };
            match asked {
                Asked::Answered(answer) => return Ok(answer),
                Asked::Refused(refusal) => return Err(refusal.into()),
                Asked::Again(why) => last = why,
            }
        }
    }

    fn leader(&self) -> Option<Conn> {
        self.leader.borrow().as_ref().filter(|conn| !conn.is_closed()).cloned()
    }

    /// This connection is not one to a leader that answers, if it was taken for that.
    fn lost(&self, conn: &Conn) {
        self.leader.send_if_modified(|leader| {
            let lost = leader.as_ref().is_some_and(|now| now.is(conn));
            if lost {
                *leader = None;
            }
            lost
        });
    }

    /// The cluster is that of the first master that was reached.
    fn settle(&self, conn: &Conn) -> Result<(), NetError> {
        let mut cluster = self.cluster.lock().expect("never poisoned");
        if cluster.0 == 0 {
            *cluster = conn.cluster();
        }
        if *cluster == conn.cluster() {
            return Ok(());
        }
        let refusal = Refusal::new(Code::WrongCluster, conn.cluster());
        Err(NetError::Refused { addr: conn.addr().into(), refusal })
    }

    fn remember(&self, addr: &str) {
        let mut addrs = self.addrs.lock().expect("never poisoned");
        if addrs.len() < ADDRS_MAX && !addrs.iter().any(|known| known == addr) {
            addrs.push(addr.into());
        }
    }

    /// Asks who is known to lead; the others, too, when nothing comes from there.
    async fn ask_leader<Q: Message, A: FromMaster>(
        &self,
        leader: &Conn,
        request: &Q,
        patience: Patience,
    ) -> Asked<A> {
        let began = Instant::now();
        let rest = || patience.most.saturating_sub(began.elapsed());
        let mut call = std::pin::pin!(async {
            let answer = leader.send(request, 0, vec![]).await?;
            leader.decode::<A>(Some(answer.await), patience.most)
        });
        let mut answer = leader.heard().wait(patience, &mut call).await;
        if answer.is_none() && !rest().is_zero() {
            answer = tokio::select! {
                answer = tokio::time::timeout(rest(), &mut call) => answer.ok(),
                found = Box::pin(self.search((Some(leader), None), request, patience, rest())) => return found,
            };
        }
        let late = || NetError::Timeout { addr: leader.addr().into(), ms: patience.most.as_millis() as u64 };
        match answer.unwrap_or_else(|| Err(late())) {
            Ok((answer, _)) => match answer.not_here() {
                None => Asked::Answered(answer),
                Some((code, hint)) => {
                    self.lost(leader);
                    match hint.filter(|hint| *hint != leader.addr()) {
                        Some(hint) => {
                            Box::pin(self.search((None, Some(hint)), request, patience, rest())).await
                        }
                        None => Asked::Again(format!("{}: {code}", leader.addr())),
                    }
                }
            },
            Err(e) => {
                self.lost(leader);
                Asked::Again(e.to_string())
            }
        }
    }

    /// Asks all masters but a silent one until one of them leads and answers, beginning with the second of these. One task
    /// looks at a time: the others take what it finds.
    async fn search<Q: Message, A: FromMaster>(
        &self,
        (silent, first): (Option<&Conn>, Option<&str>),
        request: &Q,
        patience: Patience,
        limit: Duration,
    ) -> Asked<A> {
        let mut found = self.leader.subscribe();
        let other = |leader: &Option<Conn>| {
            leader.as_ref().is_some_and(|now| !now.is_closed() && silent.is_none_or(|old| !now.is(old)))
        };
        let search = Search {
            request,
            most: patience.most,
            silent: silent.map(Conn::addr),
            visited: Mutex::default(),
            last: Mutex::new("no master was reached".into()),
        };
        let looks = async {
            let _turn = tokio::select! {
                biased;
                _ = found.wait_for(other) => return Asked::Again("another leads".into()),
                turn = self.search.lock() => turn,
            };
            let mut addrs = self.addrs.lock().expect("never poisoned").clone();
            let next = self.next.fetch_add(1, Ordering::Relaxed) % addrs.len().max(1);
            addrs.rotate_left(next);
            if let Some(first) = first {
                self.remember(first);
                addrs.retain(|addr| addr != first);
                addrs.insert(0, first.into());
            }
            addrs.retain(|addr| Some(addr.as_str()) != search.silent);
            let mut asked: FuturesUnordered<_> =
                (0..).zip(&addrs).map(|(n, addr)| self.ask_around(&search, addr, STAGGER * n)).collect();
            let mut refused = None;
            while let Some(found) = asked.next().await {
                match found {
                    Ok((conn, answer)) => {
                        self.leader.send_replace(Some(conn));
                        return Asked::Answered(answer);
                    }
                    // One address may be wrong, or another's now: the others are not.
                    Err(refusal) => refused = Some(refusal),
                }
            }
            match refused {
                // One that is silent may answer yet.
                Some(refusal) if silent.is_none() => Asked::Refused(refusal),
                // No other address is known.
                _ => std::future::pending().await,
            }
        };
        match tokio::time::timeout(limit, looks).await {
            Ok(asked) => asked,
            Err(_) => Asked::Again(search.last.lock().expect("never poisoned").clone()),
        }
    }

    /// Asks one master again and again, and whom it names, until one of them leads, or it will never answer otherwise.
    async fn ask_around<Q: Message, A: FromMaster>(
        &self,
        search: &Search<'_, Q>,
        addr: &str,
        after: Duration,
    ) -> Result<(Conn, A), Refusal> {
        tokio::time::sleep(after).await;
        let mut kept = None;
        let mut pause = PAUSE.0;
        loop {
            let hint = match self.visit(search, addr, kept.take()).await? {
                Visited::Answered(conn, answer) => return Ok((conn, answer)),
                Visited::Again { conn, leader } => {
                    kept = conn;
                    leader.filter(|leader| leader != addr && Some(leader.as_str()) != search.silent)
                }
            };
            if let Some(hint) = hint {
                self.remember(&hint);
                // It may be another cluster's by now, which is not the fault of who named it.
                if let Ok(Visited::Answered(conn, answer)) = self.visit(search, &hint, None).await {
                    return Ok((conn, answer));
                }
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Asks one master once, unless it is being asked, over the connection to it that there may be.
    async fn visit<Q: Message, A: FromMaster>(
        &self,
        search: &Search<'_, Q>,
        addr: &str,
        kept: Option<Conn>,
    ) -> Result<Visited<A>, Refusal> {
        {
            let mut visited = search.visited.lock().expect("never poisoned");
            if visited.iter().any(|other| other == addr) {
                return Ok(Visited::Again { conn: kept, leader: None });
            }
            visited.push(addr.into());
        }
        let (said, again) = match self.call::<Q, A>(search, addr, kept).await {
            Ok((conn, answer)) => match answer.not_here() {
                None => return Ok(Visited::Answered(conn, answer)),
                Some((code, leader)) => {
                    self.lost(&conn);
                    let leader = leader.map(str::to_owned);
                    (format!("{addr}: {code}"), Visited::Again { conn: Some(conn), leader })
                }
            },
            Err(NetError::Refused { refusal, .. })
                if matches!(refusal.code, Code::WrongCluster | Code::UnknownVersion) =>
            {
                return Err(refusal);
            }
            Err(e) => (e.to_string(), Visited::Again { conn: None, leader: None }),
        };
        *search.last.lock().expect("never poisoned") = said;
        search.visited.lock().expect("never poisoned").retain(|other| other != addr);
        Ok(again)
    }

    /// Asks one master, and takes it for the leader meanwhile if it does not refuse at once.
    async fn call<Q: Message, A: FromMaster>(
        &self,
        search: &Search<'_, Q>,
        addr: &str,
        kept: Option<Conn>,
    ) -> Result<(Conn, A), NetError> {
        let conn = match kept.filter(|conn| !conn.is_closed()) {
            Some(conn) => conn,
            None => self.dial(addr).await?,
        };
        self.settle(&conn)?;
        let mut call = Box::pin(conn.call::<_, A>(search.request, 0, vec![], search.most));
        let answer = match tokio::time::timeout(REFUSES_WITHIN, &mut call).await {
            Ok(answer) => answer,
            Err(_) => {
                self.leader.send_replace(Some(conn.clone()));
                let answer = (&mut call).await;
                if answer.is_err() {
                    self.lost(&conn);
                }
                answer
            }
        };
        drop(call);
        Ok((conn, answer?.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Frame, Handler, Reply, Served, serve};
    use common::wire::client_master::{MasterReply, MasterRequest};
    use std::sync::atomic::AtomicUsize;

    const CLUSTER: ClusterId = ClusterId(7);
    /// Nothing here takes as long, unless something is wrong.
    const LIMIT: Duration = Duration::from_secs(30);
    /// Who gives up a master that does not answer does not do so in these tests.
    const PATIENCE: Patience = Patience { quiet: Duration::from_millis(50), most: Duration::from_secs(3600) };

    /// Three masters as they are seen from outside.
    struct Group {
        addrs: Vec<String>,
        leader: AtomicUsize,
        /// One that answers nothing; there is none with this number at first.
        silent: AtomicUsize,
        asked: [AtomicUsize; 3],
        /// After so many refusals another leads.
        refusals: AtomicUsize,
        next: usize,
    }

    struct Master(usize, Arc<Group>);

    impl Handler for Master {
        type State = ();

        fn connected(&self) {}

        fn handle(&self, _: &mut (), _: Frame) -> Served {
            let Master(me, group) = self;
            group.asked[*me].fetch_add(1, Ordering::SeqCst);
            if group.silent.load(Ordering::SeqCst) == *me {
                return Box::pin(std::future::pending());
            }
            let leader = group.leader.load(Ordering::SeqCst);
            if leader == *me {
                return Box::pin(async { Reply::new(MasterReply::Done, vec![]) });
            }
            if group.refusals.fetch_sub(1, Ordering::SeqCst) == 1 {
                group.leader.store(group.next, Ordering::SeqCst);
            }
            let leader = Some(group.addrs[leader].clone());
            let refusal = MasterReply::Refused { code: Code::NotLeader, about: String::new(), leader };
            Box::pin(async { Reply::new(refusal, vec![]) })
        }
    }

    /// The first leads, until there were so many refusals.
    async fn group(next: usize, refusals: usize) -> Arc<Group> {
        group_of([CLUSTER; 3], next, refusals).await
    }

    async fn group_of(clusters: [ClusterId; 3], next: usize, refusals: usize) -> Arc<Group> {
        let mut listeners = vec![];
        for _ in 0..3 {
            listeners.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port"));
        }
        let addr = |l: &tokio::net::TcpListener| l.local_addr().expect("an address").to_string();
        let group = Arc::new(Group {
            addrs: listeners.iter().map(addr).collect(),
            leader: AtomicUsize::new(0),
            silent: AtomicUsize::new(usize::MAX),
            asked: Default::default(),
            refusals: AtomicUsize::new(refusals),
            next,
        });
        for (n, (listener, cluster)) in listeners.into_iter().zip(clusters).enumerate() {
            tokio::spawn(serve(listener, cluster, Arc::new(Master(n, group.clone()))));
        }
        group
    }

    async fn ask(masters: &Masters) -> Result<MasterReply, Unanswered> {
        let asked = masters.ask_patiently(&MasterRequest::Stores, PATIENCE, Instant::now() + LIMIT * 2);
        tokio::time::timeout(LIMIT, asked).await.expect("in time")
    }

    fn asked(group: &Group) -> [usize; 3] {
        group.asked.each_ref().map(|n| n.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn the_others_are_asked_while_the_leader_is_silent() {
        // A few refusals pass before the third leads.
        let group = group(2, 10).await;
        let masters = Masters::new(Caller::Client, group.addrs.clone(), CLUSTER);
        assert_eq!(ask(&masters).await.expect("it leads"), MasterReply::Done);
        group.silent.store(0, Ordering::SeqCst);
        let before = asked(&group)[0];
        let all = (0..16).map(|_| ask(&masters)).collect::<FuturesUnordered<_>>();
        let answers: Vec<_> = all.collect().await;
        assert!(answers.iter().all(|a| matches!(a, Ok(MasterReply::Done))), "{answers:?}");
        assert_eq!(asked(&group)[0] - before, 16, "who is silent is asked once by each");
        // From now on it is asked at once.
        let [first, second, third] = asked(&group);
        ask(&masters).await.expect("it leads");
        assert_eq!(asked(&group), [first, second, third + 1]);
    }

    #[tokio::test]
    async fn who_is_named_is_asked_and_remembered() {
        let group = group(2, 1).await;
        // Only the second is known, which names the first, then the third.
        let masters = Masters::new(Caller::Client, vec![group.addrs[1].clone()], ClusterId(0));
        ask(&masters).await.expect("one leads");
        assert_eq!(masters.cluster(), CLUSTER);
        ask(&masters).await.expect("one leads");
        group.leader.store(1, Ordering::SeqCst);
        ask(&masters).await.expect("one leads");
        assert!(masters.addrs.lock().expect("never poisoned").contains(&group.addrs[2]));
    }

    #[tokio::test]
    async fn who_leads_nobody_else_is_asked_beside() {
        let group = group(0, usize::MAX).await;
        let masters = Masters::new(Caller::Client, group.addrs.clone(), CLUSTER);
        ask(&masters).await.expect("it leads");
        let before = asked(&group);
        for _ in 0..100 {
            ask(&masters).await.expect("it leads");
        }
        let [first, second, third] = before;
        assert_eq!(asked(&group), [first + 100, second, third]);
    }

    #[tokio::test]
    async fn a_master_of_another_cluster_refuses_for_good() {
        let group = group(0, usize::MAX).await;
        let masters = Masters::new(Caller::Client, group.addrs.clone(), ClusterId(8));
        match ask(&masters).await {
            Err(Unanswered::Refused(refusal)) => assert_eq!(refusal.code, Code::WrongCluster),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn one_of_another_cluster_does_not_keep_others_from_being_asked() {
        let group = group_of([ClusterId(8), CLUSTER, CLUSTER], 1, 0).await;
        group.leader.store(1, Ordering::SeqCst);
        ask(&Masters::new(Caller::Client, group.addrs[..2].to_vec(), CLUSTER)).await.expect("one leads");
    }

    #[tokio::test]
    async fn who_names_one_of_another_cluster_is_asked_again() {
        // The second names the first, until it leads itself.
        let group = group_of([ClusterId(8), CLUSTER, CLUSTER], 1, 3).await;
        ask(&Masters::new(Caller::Client, vec![group.addrs[1].clone()], CLUSTER)).await.expect("it leads");
    }

    #[tokio::test]
    async fn what_nobody_answers_ends_in_time_and_says_why() {
        let group = group(0, usize::MAX).await;
        group.leader.store(2, Ordering::SeqCst);
        let masters = Masters::new(Caller::Client, group.addrs[..2].to_vec(), CLUSTER);
        group.silent.store(2, Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_millis(300);
        let asked = masters.ask_patiently::<_, MasterReply>(&MasterRequest::Stores, PATIENCE, deadline);
        let asked = tokio::time::timeout(LIMIT, asked).await.expect("in time");
        assert!(matches!(asked, Err(Unanswered::Late { .. })), "{asked:?}");
    }
}
