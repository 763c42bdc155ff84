//! Files that were cut (docs/decisions/0041): what is left of a chunk its primary hears from the masters. Who cuts a file has it ask
//! them, and waits for that; and with each renewal of the store's session they tell within which chunks files were
//! cut, in case that client has ended before it came to it.

use crate::io::{Ask, ConnId, Outbox, Output};
use crate::node::{Chunk, Node, Waiting, refuse, reply};
use common::limits::CHUNK_WAITING_MAX;
use common::wire::client_chunk::{ClientChunk, ClientChunkReply};
use common::{ChunkHandle, Code, Mutant, Refusal};

/// Most chunks of which it is known that files were cut; with more, who cuts one asks again.
const UNSURE_MAX: usize = 1 << 20;

/// Who wants to know what is left of a chunk: a client, or the store itself.
type Asker = Option<(ConnId, u64)>;

/// Those that have a chunk's file cut and want to know that it is known here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cuts {
    /// For them the masters are asked.
    asked: Vec<Asker>,
    /// They came while the masters were being asked something.
    later: Vec<Asker>,
}

impl Cuts {
    /// The clients.
    pub fn into_asks(self) -> impl Iterator<Item = (ConnId, u64)> {
        self.asked.into_iter().chain(self.later).flatten()
    }

    fn has(&self, asker: Asker) -> bool {
        self.asked.contains(&asker) || self.later.contains(&asker)
    }
}

impl Node {
    /// A client has cut a file.
    pub(crate) fn client_cut(&mut self, ask: Waiting, out: &mut Outbox) {
        let ClientChunk::Cut { handle, .. } = ask.msg else { unreachable!() };
        let Some(ask) = self.led(ask, out) else {
            return;
        };
        // What a snapshot needs of it is put aside first: then the masters know it as it was cut. And what nobody but a
        // snapshot has is known here to be gone, whether that snapshot was heard of or not.
        if !self.is_after_snapshot(handle, ask.snapshot, out) {
            return self.park(handle, ask, out);
        }
        if Mutant::CutUnasked.on() {
            let length = self.chunks[&handle].state.length as u64;
            return reply(&ask, ClientChunkReply::Sealed { length }, out);
        }
        let lead = self.chunks.get_mut(&handle).and_then(|chunk| chunk.lead.as_mut()).expect("led");
        if lead.cuts.asked.len() + lead.cuts.later.len() >= CHUNK_WAITING_MAX {
            return refuse(&ask, Code::Busy, out);
        }
        self.ask_what_is_left(handle, Some((ask.conn, ask.request)), out);
    }

    /// The masters say that files were cut within these chunks; or that any may be one. Before the next write to one they are asked.
    pub(crate) fn cut_elsewhere(&mut self, chunks: Option<Vec<ChunkHandle>>) {
        if Mutant::CutUnheard.on() {
            return;
        }
        // An answer of the masters that is on its way may make this store lead a chunk, and be from before the cut.
        let may_be = |(handle, chunk): (&ChunkHandle, &Chunk)| {
            (chunk.lead.is_some() || chunk.asking.is_some()).then_some(*handle)
        };
        let chunks = chunks.unwrap_or_else(|| self.chunks.iter().filter_map(may_be).collect());
        let mut unsure = std::mem::take(&mut self.unsure);
        unsure.retain(|handle| self.chunks.contains_key(handle) || self.may_be_made(*handle));
        self.unsure = unsure;
        for handle in chunks {
            self.unsure.insert(handle);
            let lead = self.chunks.get_mut(&handle).and_then(|chunk| chunk.lead.as_mut());
            if let Some(lead) = lead.filter(|lead| lead.cuts.asked.contains(&None)) {
                lead.cuts.later.push(None);
            }
        }
    }

    /// A chunk of which nothing is here yet, but that a writer may have it made.
    fn may_be_made(&self, handle: ChunkHandle) -> bool {
        self.is_new(handle) && !self.floors.is_over(handle)
    }

    /// The masters refuse to say what a chunk is. If it is gone before anything of it was here, and somebody has cut its file, it is not
    /// made on the word of a writer who knows it from before; the masters' order that it is gone may be yet to come.
    pub(crate) fn cut_before_it_was_made(&mut self, handle: ChunkHandle, refusal: Refusal) -> Refusal {
        let chunk = &self.chunks[&handle];
        let is_here = chunk.config().epoch.number() > 0;
        let is_cut = chunk.waiting.iter().any(|ask| matches!(ask.msg, ClientChunk::Cut { .. }));
        if is_here || !is_cut || refusal.code != Code::NoSuchChunk || Mutant::MadeAfterCut.on() {
            return refusal;
        }
        if self.unsure.len() >= UNSURE_MAX {
            return Refusal::new(Code::Busy, handle);
        }
        self.unsure.insert(handle);
        refusal
    }

    /// Whether what is left of a chunk is known here; else that is seen to.
    pub(crate) fn is_after_cut(&mut self, handle: ChunkHandle, out: &mut Outbox) -> bool {
        let lead = self.chunks.get(&handle).and_then(|chunk| chunk.lead.as_ref()).expect("led");
        if lead.is_gone || !self.unsure.contains(&handle) {
            return true;
        }
        if !lead.cuts.has(None) {
            self.ask_what_is_left(handle, None, out);
        }
        false
    }

    fn ask_what_is_left(&mut self, handle: ChunkHandle, asker: Asker, out: &mut Outbox) {
        let chunk = self.chunks.get_mut(&handle).expect("led");
        let lead = chunk.lead.as_mut().expect("led");
        if chunk.asking.is_some() && !Mutant::CutAskedBefore.on() {
            // The answer may be from before the cut.
            lead.cuts.later.push(asker);
        } else {
            lead.cuts.asked.push(asker);
            self.ask(handle, Ask::Confirm, out);
        }
    }

    /// For whom the masters were asked, who answer now.
    pub(crate) fn cuts_asked(&mut self, handle: ChunkHandle) -> Vec<Asker> {
        let lead = self.chunks.get_mut(&handle).and_then(|chunk| chunk.lead.as_mut());
        lead.map_or(vec![], |lead| std::mem::take(&mut lead.cuts.asked))
    }

    /// The masters have said what is left: that is known here now, if they were asked after the store had heard of the cut.
    pub(crate) fn is_sure(
        &mut self,
        handle: ChunkHandle,
        asked: &[Asker],
        left: &Result<Option<u64>, Refusal>,
    ) {
        let is_said = left.as_ref().err().is_none_or(|refusal| refusal.code == Code::NoSuchChunk);
        let lead = self.chunks.get(&handle).and_then(|chunk| chunk.lead.as_ref());
        let is_over = lead.is_none_or(|lead| !lead.cuts.later.contains(&None));
        if is_said && is_over && asked.contains(&None) {
            self.unsure.remove(&handle);
        }
    }

    /// This is what the masters have said, and it holds here.
    pub(crate) fn cuts_told(
        &mut self,
        handle: ChunkHandle,
        asked: Vec<Asker>,
        left: Result<Option<u64>, Refusal>,
        out: &mut Outbox,
    ) {
        let length = self.chunks.get(&handle).map_or(0, |chunk| chunk.state.length as u64);
        let msg = match left {
            Ok(sealed) => ClientChunkReply::Sealed { length: sealed.unwrap_or(length) },
            Err(refusal) => ClientChunkReply::Refused(refusal),
        };
        for (conn, request) in asked.into_iter().flatten() {
            out.push(Output::Reply { conn, request, msg: msg.clone(), data: vec![] });
        }
        self.ask_for_cuts(handle, out);
    }

    /// The masters may be asked again: for cuts that came meanwhile.
    pub(crate) fn ask_for_cuts(&mut self, handle: ChunkHandle, out: &mut Outbox) {
        let Some(chunk) = self.chunks.get_mut(&handle).filter(|chunk| chunk.asking.is_none()) else { return };
        let Some(lead) = chunk.lead.as_mut().filter(|lead| !lead.cuts.later.is_empty()) else { return };
        lead.cuts.asked = std::mem::take(&mut lead.cuts.later);
        self.ask(handle, Ask::Confirm, out);
    }
}
