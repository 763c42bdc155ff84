//! One program, and the model of what its files hold.

use anyhow::{Context, bail, ensure};
use client::Client;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, RngExt, SeedableRng};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Its directories, and names in each of them: few, so that they are used again and again.
const DIRECTORIES: [&str; 3] = ["d0", "d1", "d2"];
const NAMES: u32 = 10;
/// A file has at most so many bytes.
const BYTES_MAX: usize = 8 << 20;
/// What is kept open, and kept of snapshots.
const OPEN_MAX: usize = 5;
const SNAPSHOTS_MAX: usize = 4;
/// For so long a mount may believe in a name, or in attributes, that were changed through the other.
const BELIEVED: Duration = Duration::from_millis(1300);

/// What it did.
pub struct Told {
    pub changes: u64,
    pub verified: u64,
}

/// A file as it should be.
struct Model {
    bytes: Vec<u8>,
    mode: Option<u32>,
}

/// An open file, and through which mount.
struct Open {
    file: File,
    id: usize,
    mount: usize,
    appends: bool,
}

pub struct Program {
    rng: StdRng,
    mounts: [PathBuf; 2],
    /// They believe nothing, and tell of everything as it is.
    is_strict: bool,
    /// Its directory, from the root of the cluster.
    directory: String,
    /// All files that there ever were.
    files: Vec<Model>,
    names: BTreeMap<String, usize>,
    /// When a name, or what it names, was last changed through each mount, but for its bytes.
    changed: BTreeMap<String, [Option<Instant>; 2]>,
    open: Vec<Open>,
    snapshots: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    trace: File,
    client: Client,
    runtime: Handle,
    told: Told,
}

/// Fails with where two contents differ.
fn same(found: &[u8], wanted: &[u8]) -> anyhow::Result<()> {
    let first = found.iter().zip(wanted).position(|(one, other)| one != other);
    ensure!(
        found == wanted,
        "it has {} bytes, and should have {}; the first that differs: {first:?}",
        found.len(),
        wanted.len()
    );
    Ok(())
}

/// Puts bytes into others, and zeros before them if they lie behind the end.
fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(at + data.len()), 0);
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Program {
    pub fn new(
        seed: u64,
        mounts: [PathBuf; 2],
        is_strict: bool,
        below: &str,
        home: &Path,
        client: Client,
    ) -> anyhow::Result<Program> {
        let directory = format!("{below}/{seed}");
        for name in DIRECTORIES {
            fs::create_dir_all(mounts[0].join(&directory).join(name))?;
        }
        Ok(Program {
            rng: StdRng::seed_from_u64(seed),
            mounts,
            is_strict,
            directory,
            files: vec![],
            names: BTreeMap::new(),
            changed: BTreeMap::new(),
            open: vec![],
            snapshots: BTreeMap::new(),
            trace: File::create(home.join(format!("trace-{seed}.txt")))?,
            client,
            runtime: Handle::current(),
            told: Told { changes: 0, verified: 0 },
        })
    }

    /// Does something, and compares what it sees.
    pub fn step(&mut self) -> anyhow::Result<()> {
        match self.rng.random_range(0..100) {
            0..22 => self.write(),
            22..50 => self.use_open(),
            50..57 => self.truncate(),
            57..60 => self.unlink(),
            60..65 => self.rename(),
            65..68 => self.link(),
            68..76 => self.clone(),
            76..78 => self.snapshot(),
            78..82 => self.look_into_snapshot(),
            82..86 => self.punch(),
            86..91 => self.open_or_close(),
            91..93 => self.change_mode(),
            _ => self.look(),
        }
    }

    /// Looks at all there is.
    pub fn end(mut self) -> anyhow::Result<Told> {
        self.open.clear();
        std::thread::sleep(BELIEVED);
        let found = |directory: PathBuf| {
            let entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
            anyhow::Ok(entries.into_iter().map(|e| e.file_name().into_string().expect("ours")).collect())
        };
        for mount in 0..2 {
            for directory in DIRECTORIES {
                let inside = self.names.keys().filter_map(|n| n.strip_prefix(directory)?.strip_prefix('/'));
                let wanted: BTreeSet<String> = inside.map(str::to_owned).collect();
                let found: BTreeSet<String> = found(self.path(mount, directory))?;
                ensure!(found == wanted, "{directory} has {found:?}, and should have {wanted:?}");
            }
            for (name, id) in &self.names {
                self.check(mount, name, &self.files[*id].bytes)?;
            }
        }
        for (snapshot, names) in std::mem::take(&mut self.snapshots) {
            for (name, bytes) in &names {
                self.check(0, &format!(".snapshot/{snapshot}/{name}"), bytes)?;
                self.told.verified += 1;
            }
            self.delete_snapshot(&snapshot)?;
        }
        self.told.verified += self.names.len() as u64;
        fs::remove_dir_all(self.mounts[0].join(&self.directory))?;
        Ok(self.told)
    }

    // --- who and where --------------------------------------------------------------------

    fn path(&self, mount: usize, name: &str) -> PathBuf {
        self.mounts[mount].join(&self.directory).join(name)
    }

    /// A name that is there; with strict mounts mostly one of what is open, which is then changed through the other mount, too.
    fn some(&mut self) -> Option<(String, usize)> {
        if self.is_strict && self.rng.random_bool(0.6) {
            let open: BTreeSet<usize> = self.open.iter().map(|open| open.id).collect();
            let names = self.names.iter().filter(|(_, id)| open.contains(id));
            if let Some((name, id)) = names.choose(&mut self.rng) {
                return Some((name.clone(), *id));
            }
        }
        self.names.iter().choose(&mut self.rng).map(|(name, id)| (name.clone(), *id))
    }

    /// One that may be there.
    fn any(&mut self) -> String {
        let directory = DIRECTORIES.choose(&mut self.rng).expect("some");
        format!("{directory}/f{}", self.rng.random_range(0..NAMES))
    }

    /// A mount to do something through: the one through which it is open, if it is. It knows what was changed through the other.
    fn mount(&mut self, names: &[&str]) -> Option<usize> {
        if self.is_strict {
            return Some(self.rng.random_range(0..2));
        }
        let ids: Vec<usize> = names.iter().filter_map(|name| self.names.get(*name).copied()).collect();
        let held: BTreeSet<usize> =
            self.open.iter().filter(|open| ids.contains(&open.id)).map(|open| open.mount).collect();
        // The last time through each.
        let last = [0, 1].map(|mount| {
            let changed = names.iter().filter_map(|name| self.changed.get(*name)?[mount]);
            changed.max().filter(|at| at.elapsed() < BELIEVED)
        });
        let mount = match held.len() {
            0 if last[0] != last[1] && self.rng.random_bool(0.8) => usize::from(last[1] > last[0]),
            0 => self.rng.random_range(0..2),
            1 => *held.first().expect("one"),
            _ => return None,
        };
        if let Some(at) = last[1 - mount] {
            std::thread::sleep(BELIEVED.saturating_sub(at.elapsed()));
        }
        Some(mount)
    }

    fn changes(&mut self, mount: usize, name: &str) {
        self.changed.entry(name.to_owned()).or_default()[mount] = Some(Instant::now());
    }

    /// Writes down what is about to be done.
    fn does(&mut self, what: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
        self.told.changes += 1;
        Ok(writeln!(self.trace, "{what}")?)
    }

    fn new_file(&mut self, name: &str) -> usize {
        self.files.push(Model { bytes: vec![], mode: None });
        self.names.insert(name.to_owned(), self.files.len() - 1);
        self.files.len() - 1
    }

    fn random_bytes(&mut self) -> Vec<u8> {
        let len = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(1..2 << 20),
            1..4 => self.rng.random_range(1..300_000),
            _ => *[1, 50, 4096, 5000, 70_000].choose(&mut self.rng).expect("some"),
        };
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// Where to write: mostly where there are bytes, or at their end.
    fn place(&mut self, id: usize, len: usize) -> usize {
        let has = self.files[id].bytes.len();
        let at = match self.rng.random_range(0..8) {
            0..3 => has,
            3 => 0,
            4 => self.rng.random_range(0..BYTES_MAX / 2),
            _ => self.rng.random_range(0..=has),
        };
        if at + len > BYTES_MAX { 0 } else { at }
    }

    // --- what it does ----------------------------------------------------------------------

    fn write(&mut self) -> anyhow::Result<()> {
        let name = match self.some() {
            Some((name, _)) if self.rng.random_bool(0.8) => name,
            _ => self.any(),
        };
        let Some(mount) = self.mount(&[&name]) else { return Ok(()) };
        let is_new = !self.names.contains_key(&name);
        let id = if is_new { self.new_file(&name) } else { self.names[&name] };
        if is_new {
            self.changes(mount, &name);
        }
        let data = self.random_bytes();
        let appends = self.files[id].bytes.len() + data.len() <= BYTES_MAX && self.rng.random_bool(0.3);
        let at = if appends { self.files[id].bytes.len() } else { self.place(id, data.len()) };
        self.does(format_args!("write {mount} {name} {at} {} appends {appends}", data.len()))?;
        let mut options = OpenOptions::new();
        let options = options.create(true).read(true).append(appends).write(!appends);
        let mut file = options.open(self.path(mount, &name))?;
        if appends {
            file.write_all(&data)?
        } else {
            file.write_all_at(&data, at as u64)?
        }
        if self.rng.random() {
            file.sync_all()?;
        }
        put(&mut self.files[id].bytes, at, &data);
        Ok(())
    }

    fn truncate(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.some() else { return Ok(()) };
        let Some(mount) = self.mount(&[&name]) else { return Ok(()) };
        let has = self.files[id].bytes.len();
        let len = match self.rng.random_range(0..4) {
            0 => 0,
            1 => self.rng.random_range(0..BYTES_MAX / 2),
            _ => self.rng.random_range(0..=has),
        };
        self.does(format_args!("truncate {mount} {name} {len}"))?;
        let mut options = OpenOptions::new();
        let options = options.write(true).truncate(len == 0 && self.rng.random());
        options.open(self.path(mount, &name))?.set_len(len as u64)?;
        self.files[id].bytes.resize(len, 0);
        // Who has it open still knows the chunks that it had.
        match self.open.iter().position(|open| open.id == id && open.mount != mount) {
            Some(n) => self.write_to(n),
            None => Ok(()),
        }
    }

    fn unlink(&mut self) -> anyhow::Result<()> {
        let Some((name, _)) = self.some() else { return Ok(()) };
        let Some(mount) = self.mount(&[&name]) else { return Ok(()) };
        self.does(format_args!("unlink {mount} {name}"))?;
        fs::remove_file(self.path(mount, &name))?;
        self.names.remove(&name);
        self.changes(mount, &name);
        Ok(())
    }

    fn rename(&mut self) -> anyhow::Result<()> {
        let (Some((from, id)), to) = (self.some(), self.any()) else { return Ok(()) };
        let Some(mount) = self.mount(&[&from, &to]) else { return Ok(()) };
        self.does(format_args!("rename {mount} {from} {to}"))?;
        fs::rename(self.path(mount, &from), self.path(mount, &to))?;
        if self.names.get(&to) != Some(&id) {
            // Two names of one file both stay.
            self.names.remove(&from);
            self.names.insert(to.clone(), id);
        }
        self.changes(mount, &from);
        self.changes(mount, &to);
        Ok(())
    }

    fn link(&mut self) -> anyhow::Result<()> {
        let (Some((from, id)), to) = (self.some(), self.any()) else { return Ok(()) };
        let Some(mount) = self.mount(&[&from, &to]).filter(|_| !self.names.contains_key(&to)) else {
            return Ok(());
        };
        self.does(format_args!("link {mount} {from} {to}"))?;
        fs::hard_link(self.path(mount, &from), self.path(mount, &to))?;
        self.names.insert(to.clone(), id);
        self.changes(mount, &to);
        Ok(())
    }

    /// A file, or a part of it, as it is or as a snapshot has it, replaces what another one holds.
    fn clone(&mut self) -> anyhow::Result<()> {
        let to = self.any();
        let snapshot = self.snapshots.iter().choose(&mut self.rng).filter(|_| self.rng.random_bool(0.3));
        let (from, bytes, mount) = match snapshot {
            Some((snapshot, names)) => {
                let Some((name, bytes)) = names.iter().choose(&mut self.rng) else { return Ok(()) };
                let (from, bytes) = (format!(".snapshot/{snapshot}/{name}"), bytes.clone());
                (from, bytes, self.mount(&[&to]))
            }
            None => {
                let Some((name, id)) = self.some() else { return Ok(()) };
                if self.names.get(&to) == Some(&id) {
                    return Ok(());
                }
                let (bytes, mount) = (self.files[id].bytes.clone(), self.mount(&[&name, &to]));
                (name, bytes, mount)
            }
        };
        let Some(mount) = mount else { return Ok(()) };
        let chunk = super::CHUNK_BYTES as usize;
        let mut start =
            *[0, 0, chunk, self.rng.random_range(0..2 * chunk)].choose(&mut self.rng).expect("some");
        start = start.min(bytes.len());
        let at = *[0, 0, chunk, self.rng.random_range(0..chunk)].choose(&mut self.rng).expect("some");
        let all = bytes.len() - start;
        let len = if self.rng.random() { all } else { self.rng.random_range(0..=all) };
        self.does(format_args!("clone {mount} {from} {start} {len} {to} {at}"))?;
        let source = File::open(self.path(mount, &from))?;
        // The kernel copies no further than the length that it knows.
        let found = source.metadata()?.len();
        ensure!(found == bytes.len() as u64, "{from} has {found} bytes, and should have {}", bytes.len());
        let mut options = OpenOptions::new();
        let target = options.write(true).create(true).truncate(true).open(self.path(mount, &to))?;
        let (mut left, mut offset, mut into) = (len, start as u64, at as u64);
        while left > 0 {
            let done = copy_file_range(&source, Some(&mut offset), &target, Some(&mut into), left)?;
            ensure!(done > 0, "{from} ends at {offset}, and has {} bytes", bytes.len());
            left -= done;
        }
        let id = match self.names.get(&to) {
            Some(id) => *id,
            None => {
                self.changes(mount, &to);
                self.new_file(&to)
            }
        };
        self.files[id].bytes.clear();
        if len > 0 {
            put(&mut self.files[id].bytes, at, &bytes[start..start + len]);
        }
        Ok(())
    }

    fn punch(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.some() else { return Ok(()) };
        let Some(mount) = self.mount(&[&name]) else { return Ok(()) };
        let has = self.files[id].bytes.len();
        if has == 0 {
            return Ok(());
        }
        let (start, len) = (self.rng.random_range(0..has), self.rng.random_range(1..1 << 20));
        self.does(format_args!("punch {mount} {name} {start} {len}"))?;
        let file = OpenOptions::new().write(true).open(self.path(mount, &name))?;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, how, start as u64, len as u64)?;
        self.files[id].bytes[start..has.min(start + len)].fill(0);
        Ok(())
    }

    fn change_mode(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.some() else { return Ok(()) };
        let Some(mount) = self.mount(&[&name]) else { return Ok(()) };
        let mode = self.rng.random_range(0o400..0o777);
        self.does(format_args!("chmod {mount} {name} {mode:o}"))?;
        fs::set_permissions(self.path(mount, &name), Permissions::from_mode(mode))?;
        self.files[id].mode = Some(mode);
        let names: Vec<String> =
            self.names.iter().filter(|(_, of)| **of == id).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.changes(mount, name));
        Ok(())
    }

    // --- files that stay open --------------------------------------------------------------

    fn open_or_close(&mut self) -> anyhow::Result<()> {
        if self.open.len() >= OPEN_MAX {
            let n = self.rng.random_range(0..OPEN_MAX);
            self.does(format_args!("close {n}"))?;
            self.open.swap_remove(n);
            return Ok(());
        }
        let Some((name, id)) = self.some() else { return Ok(()) };
        let Some(mount) = self.mount(&[&name]) else { return Ok(()) };
        let (appends, syncs) = (self.rng.random_bool(0.3), self.rng.random_bool(0.2));
        self.does(format_args!("open {} {mount} {name} appends {appends} syncs {syncs}", self.open.len()))?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(!appends).append(appends);
        let flags = if syncs { libc::O_SYNC } else { 0 };
        let file = options.custom_flags(flags).open(self.path(mount, &name))?;
        self.open.push(Open { file, id, mount, appends });
        Ok(())
    }

    fn use_open(&mut self) -> anyhow::Result<()> {
        if self.open.is_empty() {
            return self.open_or_close();
        }
        let n = self.rng.random_range(0..self.open.len());
        let id = self.open[n].id;
        let has = self.files[id].bytes.len();
        match self.rng.random_range(0..10) {
            0..4 => self.write_to(n)?,
            4 => {
                let len = self.rng.random_range(0..=has + has / 4);
                self.does(format_args!("cut {n} {len}"))?;
                self.open[n].file.set_len(len as u64)?;
                self.files[id].bytes.resize(len, 0);
            }
            5 => {
                self.does(format_args!("sync {n}"))?;
                self.open[n].file.sync_all()?;
            }
            _ => {
                let (start, len) = (self.rng.random_range(0..=has), self.rng.random_range(0..300_000));
                let found = self.open[n].file.metadata()?.len();
                ensure!(found == has as u64, "open {n}: it has {found} bytes, and should have {has}");
                let wanted = &self.files[id].bytes[start..has.min(start + len)];
                let mut bytes = vec![0; wanted.len()];
                self.open[n].file.read_exact_at(&mut bytes, start as u64)?;
                same(&bytes, wanted).with_context(|| format!("open {n}, from {start} on"))?;
            }
        }
        Ok(())
    }

    fn write_to(&mut self, n: usize) -> anyhow::Result<()> {
        let (id, appends) = (self.open[n].id, self.open[n].appends);
        let data = self.random_bytes();
        let at = if appends { self.files[id].bytes.len() } else { self.place(id, data.len()) };
        if at + data.len() > BYTES_MAX {
            return Ok(());
        }
        self.does(format_args!("write to {n} {at} {}", data.len()))?;
        let mut file = &self.open[n].file;
        if appends {
            file.write_all(&data)?
        } else {
            file.write_all_at(&data, at as u64)?
        }
        put(&mut self.files[id].bytes, at, &data);
        Ok(())
    }

    // --- snapshots -----------------------------------------------------------------------

    fn snapshot(&mut self) -> anyhow::Result<()> {
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            let name = self.snapshots.keys().choose(&mut self.rng).expect("some").clone();
            self.does(format_args!("delete snapshot {name}"))?;
            self.delete_snapshot(&name)?;
            self.snapshots.remove(&name);
        }
        let name = format!("s{}", self.told.changes);
        self.does(format_args!("snapshot {name}"))?;
        // What is not synced may be in it or not.
        self.open.iter().try_for_each(|open| open.file.sync_all())?;
        let path = format!("/{}", self.directory).into_bytes();
        self.runtime.block_on(self.client.take_snapshot(&path, name.as_bytes()))?;
        let held = self.names.iter().map(|(name, id)| (name.clone(), self.files[*id].bytes.clone()));
        self.snapshots.insert(name, held.collect());
        Ok(())
    }

    fn delete_snapshot(&self, name: &str) -> anyhow::Result<()> {
        let path = format!("/{}", self.directory).into_bytes();
        Ok(self.runtime.block_on(self.client.delete_snapshot(&path, name.as_bytes()))?)
    }

    fn look_into_snapshot(&mut self) -> anyhow::Result<()> {
        let Some((snapshot, names)) = self.snapshots.iter().choose(&mut self.rng) else { return Ok(()) };
        let mount = self.rng.random_range(0..2);
        let Some((name, bytes)) = names.iter().choose(&mut self.rng) else { return Ok(()) };
        self.check(mount, &format!(".snapshot/{snapshot}/{name}"), bytes)?;
        self.told.verified += 1;
        Ok(())
    }

    // --- what it sees --------------------------------------------------------------------

    fn look(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.some() else { return Ok(()) };
        let Some(mount) = self.mount(&[&name]) else { return Ok(()) };
        self.check(mount, &name, &self.files[id].bytes)?;
        if let Some(wanted) = self.files[id].mode {
            let mode = self.path(mount, &name).metadata()?.permissions().mode() & 0o777;
            ensure!(mode == wanted, "{name} has mode {mode:o}, and should have {wanted:o}");
        }
        self.told.verified += 1;
        Ok(())
    }

    fn check(&self, mount: usize, name: &str, wanted: &[u8]) -> anyhow::Result<()> {
        let path = self.path(mount, name);
        let found = fs::read(&path).with_context(|| format!("{}: read", path.display()))?;
        same(&found, wanted).with_context(|| path.display().to_string())?;
        let len = fs::metadata(&path)?.len();
        if len != wanted.len() as u64 {
            // It may be what was believed before the open.
            std::thread::sleep(BELIEVED);
            let len = fs::metadata(&path)?.len();
            if len != wanted.len() as u64 {
                bail!("{}: it is said to have {len} bytes, and has {}", path.display(), wanted.len());
            }
        }
        Ok(())
    }
}
