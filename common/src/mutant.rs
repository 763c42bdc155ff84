//! Known mistakes that can be switched on, one at a time, to see that the simulator finds them.
//! Without the feature `mutants` none is ever on, and nothing of them is compiled.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($(#[$doc])* $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];
        }
    };
}

mutants! {
    /// A group counts as durable before its flush.
    AckBeforeFlush,
    /// A group that names extents is a durable write without a flush.
    NoFlushOfExtents,
    /// Of several segments of extents with writes that are to be made durable, one is forgotten.
    OneSegmentSynced,
    /// The primary counts its own copy before it is durable.
    SelfAckEarly,
    /// A write is committed when the fastest member holds it.
    CommitAtFastest,
    /// Nobody waits for the session of a removed member to end.
    ForgetHold,
    /// A store serves after its session is over.
    ServeAfterSession,
    /// A chunk that was confirmed once is served in every session after.
    ConfirmOnce,
    /// A request that is sent again is carried out again.
    NoAnswers,
    /// A request that is under way already is admitted again.
    NoDedupInTail,
    /// A primary takes a chunk that it made, led and lost for a new one, and members do not look whether
    /// what comes next follows what they have.
    LedAsNew,
    /// A primary reads before what it adopted is committed.
    ReadUnresolved,
    /// A secondary reads without asking what is committed.
    ReadWithoutAsking,
    /// A member tells its tail before the epoch is durable.
    TailBeforeDurable,
    /// Blocks are free before the commit point that frees them is in the log.
    FreeAtCommit,
    /// Blocks are free while a read is under way.
    FreeUnderRead,
    /// The index of a checkpoint is written before its pages are durable.
    PagesUnsynced,
    /// Bytes that were overwritten on their way home replace what overwrote them.
    HomeAnyway,
    /// A checkpoint that says what has changed leaves a chunk out that has.
    ChangeForgotten,
    /// Or one that is gone.
    GoneForgotten,
    /// A checkpoint says chunks as they are when it comes to them, not as they were when it was cut.
    CutMoves,
    /// Writes are admitted while a member joins.
    AdmitWhileJoining,
    /// The last round of a copy does not wait for the tail.
    LastRoundWithTail,
    /// A copy leaves the remembered answers behind.
    NoAnswersCopied,
    /// A round of a copy asks for what was written after the last one ended, not after it began.
    SinceRoundEnd,
    /// A copy begins after the last record of its old copy's tail, committed or not.
    CopyFromTail,
    /// A primary goes on although the masters were asked for a new member.
    GoOnAfterAsked,
    /// A primary does not ask whether a snapshot needs a chunk before it writes to it.
    NoFork,
    /// A fork is made while writes are under way.
    ForkWithTail,
    /// A member says that a fork is made before it is durable.
    ForkEarly,
    /// Writes are admitted while a chunk is forked for a client.
    CloneAdmits,
    /// A fork that a primary has given up is made when it is asked for once more.
    CloneTwice,
    /// A primary says that it knows of a truncation, and has not asked what is left.
    CutUnasked,
    /// It goes by an answer to what it asked before.
    CutAskedBefore,
    /// It does not hear of those whose clients have ended.
    CutUnheard,
    /// A writer has it make a chunk that was taken away before it was there.
    MadeAfterCut,
    /// It admits writes to a chunk that the masters know no more.
    GoneAdmits,
    /// What the masters answer is believed, however late it comes.
    LateAnswer,
    /// The next primary of a sealed chunk goes by what it has heard of snapshots.
    TakenOverUnasked,
    /// What a client has heard of a snapshot is not minded.
    NoStamp,
    /// Clients on the same machine go on with what they were told of a chunk, whatever happens to it.
    StampStays,
    /// They are told where the bytes of a chunk are while it has a tail.
    StampWithTail,
    /// A chunk goes on with a single live member though others may come back.
    NoFloor,
}

impl Mutant {
    /// Whether this mistake is made.
    #[cfg(not(feature = "mutants"))]
    pub const fn on(self) -> bool {
        false
    }

    /// Whether this mistake is made on this thread.
    #[cfg(feature = "mutants")]
    pub fn on(self) -> bool {
        switch::ON.get() == Some(self)
    }
}

#[cfg(feature = "mutants")]
pub mod switch {
    //! Which mistake is on, by thread.

    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        pub(super) static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Switches one on, or all off.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }
}
