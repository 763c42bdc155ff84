//! The client library: everything a program does with a Cairn cluster. Runs wherever tokio runs.

mod begin;
mod chunk;
mod clones;
mod conns;
mod cut;
mod error;
mod file;
mod local;
mod locks;
mod looks;
mod masters;
mod open;
mod posix;
mod reports;
mod requests;

pub use begin::begin;
pub use clones::Copied;
pub use common::wire::client_master::{
    Attr, ChunkInfo, DrainItem, Entry, FileKind, LockItem, Loss, MaintenanceItem, Owner, Policy, Quota,
    RepairItem, SetTime, SnapshotInfo, Status, Story, TrashEntry, Usage,
};
pub use error::Error;
pub use file::{Appender, FileReader, FileWriter};
pub use local::{Here, LARGE_BYTES, Uncached};
pub use open::{Gathered, Moment, OpenFile};
pub use posix::Changes;

use chunk::RETRY;
use client_core::Layout;
use common::limits::{CHUNK_CLIENT_WINDOW, CLIENT_DEADLINE_MS, LIST_PAGE_MAX};
use common::wire::StoreInfo;
use common::wire::client_master::{Looked, MasterReply, MasterRequest, Mutation, Only};
use common::{ChunkHandle, ClusterId, Code, FileId, Refusal, Serial, ServerId, StoreId};
use conns::Conns;
use masters::Masters;
use requests::Requests;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses of masters; one that answers is enough.
    pub masters: Vec<String>,
    /// The cluster, if it is known: any other is refused.
    pub cluster: Option<ClusterId>,
    /// Rack of this client: replicas there are preferred.
    pub rack: String,
    /// Whose what it makes shall be.
    pub owner: Owner,
    /// A request is given up after this long.
    pub deadline: Duration,
    /// Whether files of stores on this machine are read here, where that is possible.
    pub reads_here: bool,
}

impl Config {
    /// With the defaults.
    pub fn new(masters: Vec<String>) -> Config {
        Config {
            masters,
            cluster: None,
            rack: String::new(),
            owner: Owner::default(),
            deadline: Duration::from_millis(CLIENT_DEADLINE_MS),
            reads_here: true,
        }
    }
}

/// A client of a cluster. Clones share everything.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub masters: Masters,
    pub conns: Conns,
    pub writes: Requests,
    pub hedge: Mutex<client_core::Hedge>,
    /// Stores on this machine.
    pub local: Arc<local::Local>,
    /// What open files may hold of its memory.
    pub budget: open::Budget,
    /// The last chunks of files that were looked at lately.
    pub looks: looks::Looks,
    /// What the masters have yet to hear of files that were written to.
    pub reports: reports::Reports,
}

/// What the masters know of a path.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its attributes: the length of an open file may lag.
    pub attr: Attr,
    /// Of a file: its last chunk, if that is open or the only one.
    chunk: Option<ChunkInfo>,
    /// What the primary of an open last chunk has said meanwhile.
    said: Option<looks::Said>,
}

impl From<Attr> for Known {
    fn from(attr: Attr) -> Known {
        Known { attr, chunk: None, said: None }
    }
}

impl Known {
    /// Of a file that is new, or was just emptied: nobody has written to it.
    fn into_new(self) -> Seen {
        let layout = Some(Layout::new(self.chunk.into_iter().collect(), 0));
        Seen { attr: self.attr, serial: Serial(0), layout }
    }
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub name: Vec<u8>,
    /// What the masters know of it.
    pub known: Known,
    /// Whether it may have extended attributes.
    pub may_have_xattrs: bool,
}

impl From<Entry> for Found {
    fn from(Entry { name, attr }: Entry) -> Found {
        Found { name, known: Known::from(attr), may_have_xattrs: true }
    }
}

/// What is at a path, as it was at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its attributes, with the exact length.
    pub attr: Attr,
    /// Changes whenever bytes of its open last chunk do; 0 without one.
    pub serial: Serial,
    /// Where its bytes are, if that is known.
    layout: Option<Layout>,
}

/// A file whose open last chunk is so long.
fn exactly(mut layout: Layout, length: u64, serial: Serial) -> Layout {
    let known = layout.chunks().last().map_or(0, |chunk| chunk.length);
    layout.set_last_length(length.max(known));
    layout.set_serial(serial);
    layout
}

impl From<Attr> for Seen {
    fn from(attr: Attr) -> Seen {
        Seen { attr, serial: Serial(0), layout: None }
    }
}

/// The state of one replica of a chunk.
pub use chunk::ReplicaView;

impl Client {
    /// Connects to a cluster.
    pub async fn connect(config: Config) -> Result<Client> {
        if config.masters.is_empty() {
            return Err(Refusal::new(Code::BadArgument, "no master's address is given").into());
        }
        let masters = Masters::new(&config);
        let inner = Inner {
            conns: Conns::new(masters.snapshot()),
            masters,
            writes: Requests::new(CHUNK_CLIENT_WINDOW),
            hedge: Mutex::default(),
            local: Default::default(),
            budget: Default::default(),
            looks: Default::default(),
            reports: Default::default(),
            config,
        };
        let client = Client { inner: Arc::new(inner) };
        client.stores().await?;
        Ok(client)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.inner.config.deadline
    }

    async fn ask(&self, request: MasterRequest) -> Result<MasterReply> {
        self.inner.masters.ask(&request, self.deadline()).await
    }

    async fn mutate(&self, mutation: Mutation) -> Result<MasterReply> {
        self.inner.masters.mutate(mutation, self.deadline()).await
    }

    // --- the name space --------------------------------------------------------------------

    /// Attributes of a path. The length of an open file is asked of its primary.
    pub async fn stat(&self, path: &[u8]) -> Result<Attr> {
        Ok(self.see(path).await?.attr)
    }

    /// What is at a path. The length of an open file is asked of its primary.
    pub async fn see(&self, path: &[u8]) -> Result<Seen> {
        self.exactly(self.look(path).await?).await
    }

    /// What the masters know of a path.
    pub async fn look(&self, path: &[u8]) -> Result<Known> {
        match self.ask(MasterRequest::Look { path: path.into() }).await? {
            MasterReply::Opened { attr, chunk } => {
                self.inner.looks.remember(attr.file, chunk.as_ref());
                Ok(Known { attr, chunk, said: None })
            }
            _ => Err(Error::unexpected("look")),
        }
    }

    /// The same, with the length of an open file as its primary knows it.
    pub async fn exactly(&self, known: Known) -> Result<Seen> {
        let Known { mut attr, chunk, said } = known;
        let is_one = attr.count == 1;
        let layout = match chunk {
            Some(chunk) => match said {
                Some(said) => exactly(Layout::new(vec![chunk], 0), said.length, said.serial),
                None => self.exact(Layout::new(vec![chunk], 0)).await?,
            },
            None if attr.open.is_some() => self.layout(attr.file).await?,
            None => {
                let is_empty = attr.kind == FileKind::File && attr.count == 0;
                let layout = is_empty.then(|| Layout::new(vec![], attr.file.seen().0));
                return Ok(Seen { attr, serial: Serial(0), layout });
            }
        };
        attr.length = layout.len();
        Ok(Seen { attr, serial: layout.serial(), layout: Some(layout).filter(|_| is_one) })
    }

    /// Attributes as the masters have them: of an open file the length may lag.
    pub async fn lookup(&self, path: &[u8]) -> Result<Attr> {
        match self.ask(MasterRequest::Stat { path: path.into() }).await? {
            MasterReply::Attr(attr) => Ok(attr),
            _ => Err(Error::unexpected("stat")),
        }
    }

    /// One page of a directory, in byte order: the names after `after`, and whether there are more.
    pub async fn list_page(&self, path: &[u8], after: &[u8], limit: u32) -> Result<(Vec<Entry>, bool)> {
        let request = MasterRequest::List { path: path.into(), after: after.into(), limit };
        match self.ask(request).await? {
            MasterReply::Entries { entries, more } => Ok((entries, more)),
            _ => Err(Error::unexpected("list")),
        }
    }

    /// The same, each looked at, and whether it has extended attributes.
    pub async fn look_in(&self, path: &[u8], after: &[u8], limit: u32) -> Result<(Vec<Found>, bool)> {
        let request = MasterRequest::LookIn { path: path.into(), after: after.into(), limit };
        let MasterReply::Looked { entries, more } = self.ask(request).await? else {
            return Err(Error::unexpected("look in"));
        };
        let found = entries.into_iter().map(|looked| {
            let Looked { name, attr, chunk, has_xattrs } = looked;
            self.inner.looks.remember(attr.file, chunk.as_ref());
            Found { name, known: Known { attr, chunk, said: None }, may_have_xattrs: has_xattrs }
        });
        Ok((found.collect(), more))
    }

    /// All entries of a directory.
    pub async fn list(&self, path: &[u8]) -> Result<Vec<Entry>> {
        let mut all: Vec<Entry> = vec![];
        loop {
            let after = all.last().map(|e| e.name.clone()).unwrap_or_default();
            let (page, more) = self.list_page(path, &after, LIST_PAGE_MAX).await?;
            all.extend(page);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Makes a directory; with `parents` also those above, and no error if it exists.
    pub async fn mkdir(&self, path: &[u8], parents: bool, mode: u32) -> Result<()> {
        let (path, owner) = (path.into(), self.inner.config.owner);
        self.mutate(Mutation::Mkdir { path, parents, mode, owner }).await.map(drop)
    }

    /// Renames a file or directory, atomically.
    pub async fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> Result<()> {
        self.mutate(Mutation::Rename { from: from.into(), to: to.into(), replace }).await.map(drop)
    }

    /// Moves a file or directory into the trash.
    pub async fn unlink(&self, path: &[u8], recursive: bool) -> Result<()> {
        let (path, only) = (path.into(), Only::Anything);
        self.mutate(Mutation::Unlink { path, recursive, only }).await.map(drop)
    }

    /// Brings the newest trashed entry of a path back.
    pub async fn undelete(&self, path: &[u8], to: &[u8]) -> Result<()> {
        self.mutate(Mutation::Undelete { path: path.into(), to: to.into() }).await.map(drop)
    }

    /// The trash, oldest first.
    pub async fn trash(&self) -> Result<Vec<TrashEntry>> {
        let mut all: Vec<TrashEntry> = vec![];
        loop {
            let after = all.last().map_or((0, FileId(0)), TrashEntry::key);
            match self.ask(MasterRequest::Trash { after, limit: LIST_PAGE_MAX }).await? {
                MasterReply::Trash(page) if page.is_empty() => return Ok(all),
                MasterReply::Trash(page) => all.extend(page),
                _ => return Err(Error::unexpected("trash")),
            }
        }
    }

    /// Chunks that lack members, the riskiest first, and how many there are.
    pub async fn repairs(&self) -> Result<(Vec<RepairItem>, u64)> {
        match self.ask(MasterRequest::Repairs).await? {
            MasterReply::Repairs { items, count } => Ok((items, count)),
            _ => Err(Error::unexpected("repairs")),
        }
    }

    /// How much is at a path, with all that is below it, and how much may be.
    pub async fn usage(&self, path: &[u8]) -> Result<Usage> {
        match self.ask(MasterRequest::Usage { path: path.into() }).await? {
            MasterReply::Usage(usage) => Ok(usage),
            _ => Err(Error::unexpected("usage")),
        }
    }

    /// Limits what a directory may hold, with all that is below it; an empty quota takes that back.
    pub async fn set_quota(&self, path: &[u8], quota: Quota) -> Result<Usage> {
        match self.mutate(Mutation::SetQuota { path: path.into(), quota }).await? {
            MasterReply::Usage(usage) => Ok(usage),
            _ => Err(Error::unexpected("quota")),
        }
    }

    /// What giving a store up would mean.
    pub async fn loss(&self, store: StoreId) -> Result<Loss> {
        match self.ask(MasterRequest::Loss { store }).await? {
            MasterReply::Lost(loss) => Ok(loss),
            _ => Err(Error::unexpected("loss")),
        }
    }

    /// A store that is not in service will never come back: chunks go on without it.
    pub async fn give_up(&self, store: StoreId) -> Result<()> {
        self.mutate(Mutation::GiveUp { store }).await.map(drop)
    }

    /// A server will be away for a while and is waited for; zero ends that.
    pub async fn maintain(&self, server: ServerId, time: Duration) -> Result<()> {
        self.mutate(Mutation::Maintain { server, ms: time.as_millis() as u64 }).await.map(drop)
    }

    /// The servers that are maintained.
    pub async fn maintained(&self) -> Result<Vec<MaintenanceItem>> {
        match self.ask(MasterRequest::Maintenance).await? {
            MasterReply::Maintained(items) => Ok(items),
            _ => Err(Error::unexpected("maintenance")),
        }
    }

    /// All that the leader knows of a chunk.
    pub async fn explain(&self, handle: ChunkHandle) -> Result<Story> {
        match self.ask(MasterRequest::Explain { handle }).await? {
            MasterReply::Explained(story) => Ok(story),
            _ => Err(Error::unexpected("explain")),
        }
    }

    /// Begins to drain a server, or takes that back.
    pub async fn drain(&self, server: ServerId, on: bool) -> Result<()> {
        self.mutate(Mutation::Drain { server, on }).await.map(drop)
    }

    /// The servers that are drained, and what is left on them.
    pub async fn drains(&self) -> Result<Vec<DrainItem>> {
        match self.ask(MasterRequest::Drains).await? {
            MasterReply::Drains(items) => Ok(items),
            _ => Err(Error::unexpected("drains")),
        }
    }

    /// Takes a snapshot of a directory's tree: what was acknowledged before is in it, and nothing that
    /// is begun after this returns. It is seen as `path/.snapshot/name`.
    pub async fn take_snapshot(&self, path: &[u8], name: &[u8]) -> Result<SnapshotInfo> {
        let mutation = Mutation::Snapshot { path: path.into(), name: name.into() };
        match self.mutate(mutation).await? {
            MasterReply::Snapshots(mut taken) if taken.len() == 1 => Ok(taken.remove(0)),
            _ => Err(Error::unexpected("snapshot")),
        }
    }

    /// All snapshots, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        let mut all: Vec<SnapshotInfo> = vec![];
        loop {
            let after = all.last().map_or(0, |s| s.number);
            match self.ask(MasterRequest::Snapshots { after, limit: LIST_PAGE_MAX }).await? {
                MasterReply::Snapshots(page) if page.is_empty() => return Ok(all),
                MasterReply::Snapshots(page) => all.extend(page),
                _ => return Err(Error::unexpected("snapshots")),
            }
        }
    }

    /// Gives a snapshot up: what only it needed is deleted.
    pub async fn delete_snapshot(&self, path: &[u8], name: &[u8]) -> Result<()> {
        let mutation = Mutation::DeleteSnapshot { path: path.into(), name: name.into() };
        self.mutate(mutation).await.map(drop)
    }

    /// Empties the trash for good.
    pub async fn empty_trash(&self) -> Result<()> {
        self.mutate(Mutation::EmptyTrash { before_ns: u64::MAX }).await.map(drop)
    }

    /// Makes a symlink; replaces a file.
    pub async fn symlink(&self, path: &[u8], target: &[u8]) -> Result<()> {
        let owner = self.inner.config.owner;
        let mutation = Mutation::Symlink { path: path.into(), target: target.into(), parents: true, owner };
        self.mutate(mutation).await.map(drop)
    }

    /// Sets permission bits and modification time.
    pub async fn set_attr(&self, path: &[u8], mode: Option<u32>, mtime_ns: Option<i64>) -> Result<()> {
        let mtime = mtime_ns.map_or(SetTime::Keep, SetTime::At);
        self.change(path.into(), Changes { mode, mtime, ..Default::default() }).await.map(drop)
    }

    /// Makes an empty file if there is none.
    pub async fn create(&self, path: &[u8], exclusive: bool) -> Result<Attr> {
        Ok(self.create_file(path.into(), 0o644, self.inner.config.owner, exclusive, false).await?.attr)
    }

    /// The policy that holds for a path.
    pub async fn policy(&self, path: &[u8]) -> Result<Policy> {
        match self.ask(MasterRequest::Policy { path: path.into() }).await? {
            MasterReply::Policy(policy) => Ok(policy),
            _ => Err(Error::unexpected("policy")),
        }
    }

    /// Sets the policy of a directory.
    pub async fn set_policy(&self, path: &[u8], policy: Policy) -> Result<Policy> {
        match self.mutate(Mutation::SetPolicy { path: path.into(), policy }).await? {
            MasterReply::Policy(policy) => Ok(policy),
            _ => Err(Error::unexpected("set policy")),
        }
    }

    // --- files -----------------------------------------------------------------------------

    /// Opens a file for reading. Sees all that was acknowledged before.
    pub async fn open(&self, path: &[u8]) -> Result<FileReader> {
        let attr = self.lookup(path).await?;
        match attr.kind {
            FileKind::File => {}
            FileKind::Directory => {
                return Err(Refusal::new(Code::IsADirectory, String::from_utf8_lossy(path)).into());
            }
            FileKind::Symlink => {
                return Err(Refusal::new(Code::BadArgument, "it is a symlink").into());
            }
            _ => return Err(Refusal::new(Code::BadArgument, "it is a special file").into()),
        }
        self.open_file(attr).await
    }

    /// Opens a file whose attributes were just read.
    pub async fn open_file(&self, attr: Attr) -> Result<FileReader> {
        let layout = match attr.length == 0 && attr.open.is_none() {
            true => Default::default(),
            false => self.layout(attr.file).await?,
        };
        Ok(FileReader::new(self.clone(), attr, layout))
    }

    /// Begins a new file that takes its name when it is finished, in place of what was there.
    pub async fn put(&self, path: &[u8]) -> Result<FileWriter> {
        FileWriter::begin(self.clone(), path).await
    }

    /// Makes a small file in one go, visible at once; what is written is durable on return.
    pub async fn create_with(&self, path: &[u8], data: &[u8]) -> Result<()> {
        file::create_with(self, path, data).await
    }

    /// Opens a file for record appends, making it if there is none.
    pub async fn appender(&self, path: &[u8]) -> Result<Appender> {
        Appender::open(self.clone(), path).await
    }

    /// Writes at an offset of a file that exists; extends it where needed.
    pub async fn write_at(&self, path: &[u8], offset: u64, data: &[u8]) -> Result<()> {
        file::write_at(self, path, offset, data).await
    }

    /// All chunks of a file, the exact length of the last one among them.
    pub async fn layout(&self, file: FileId) -> Result<Layout> {
        let mut chunks: Vec<ChunkInfo> = vec![];
        loop {
            let limit = common::limits::LAYOUT_PAGE_MAX;
            let request = MasterRequest::Layout { file, from: chunks.len() as u32, limit };
            let MasterReply::Layout { chunks: page, count } = self.ask(request).await? else {
                return Err(Error::unexpected("layout"));
            };
            let done = page.is_empty() || chunks.len() + page.len() >= count as usize;
            chunks.extend(page);
            if done {
                break;
            }
        }
        self.exact(Layout::new(chunks, file.seen().0)).await
    }

    /// The same layout, with the length of an open last chunk as its primary knows it.
    async fn exact(&self, layout: Layout) -> Result<Layout> {
        if let Some(last) = layout.chunks().last().filter(|c| c.config.sealed.is_none()) {
            let (length, serial) = self.chunk_length(&last.config, layout.snapshot()).await?;
            return Ok(exactly(layout, length, serial));
        }
        Ok(layout)
    }

    // --- the cluster -----------------------------------------------------------------------

    /// All stores.
    pub async fn stores(&self) -> Result<Vec<StoreInfo>> {
        match self.ask(MasterRequest::Stores).await? {
            MasterReply::Stores { stores, .. } => {
                self.inner.conns.set_table(&stores);
                Ok(stores)
            }
            _ => Err(Error::unexpected("stores")),
        }
    }

    /// The state of the cluster, from whoever leads it.
    pub async fn status(&self) -> Result<Status> {
        let MasterReply::Status(status) = self.ask(MasterRequest::Status).await? else {
            return Err(Error::unexpected("status"));
        };
        Ok(status)
    }

    /// The state of one master, as it says itself; nothing if it does not answer.
    pub async fn status_of(&self, addr: &str) -> Option<Status> {
        self.inner.masters.status_of(addr).await
    }

    /// Adds a master that is running and empty.
    pub async fn add_master(&self, id: u64, addr: String) -> Result<()> {
        self.ask(MasterRequest::AddMaster { id, addr }).await.map(drop)
    }

    /// Removes a master.
    pub async fn remove_master(&self, id: u64) -> Result<()> {
        self.ask(MasterRequest::RemoveMaster { id }).await.map(drop)
    }

    /// Makes another master lead.
    pub async fn transfer_leader(&self, id: u64) -> Result<()> {
        self.ask(MasterRequest::TransferLeader { id }).await.map(drop)
    }

    /// The configuration of a chunk.
    pub async fn config(&self, handle: ChunkHandle) -> Result<common::wire::ChunkConfig> {
        match self.ask(MasterRequest::Config { handle, snapshot: 0 }).await? {
            MasterReply::Config(config) => Ok(config),
            _ => Err(Error::unexpected("config")),
        }
    }

    /// What one member of a chunk serves of a range, at most `PIECE_BYTES_MAX` long: verified, and shorter
    /// where the chunk ends.
    pub async fn read_replica(
        &self,
        config: &common::wire::ChunkConfig,
        store: StoreId,
        offset: u64,
        len: u32,
    ) -> Result<Vec<bytes::Bytes>> {
        let read = self.read_one(config, store, offset, len).await;
        read.map_err(|last| Error::Unreadable { what: format!("{} on {store}", config.handle), last })
    }

    /// A replica differs from the others: it leaves the chunk, and is made anew.
    pub async fn condemn(&self, handle: ChunkHandle, epoch: common::Epoch, store: StoreId) -> Result<()> {
        self.ask(MasterRequest::Condemn { handle, epoch, store }).await.map(drop)
    }

    /// How a chunk stands at one of its members.
    pub async fn replica(&self, config: &common::wire::ChunkConfig, store: StoreId) -> Result<ReplicaView> {
        self.replica_view(config, store).await
    }

    /// Bytes that this client has read off the disks of stores on its own machine.
    pub fn bytes_read_here(&self) -> u64 {
        self.inner.local.bytes()
    }

    /// Tells the masters that this client will never ask again.
    pub async fn close(self) {
        // Best effort: the masters forget idle clients by themselves.
        let _ = tokio::time::timeout(Duration::from_millis(500), self.mutate(Mutation::EndClient)).await;
    }
}
