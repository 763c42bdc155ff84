//! What a refusal means for whoever was refused.

use common::Code;

/// What to do next with the same request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask the masters how the chunk stands, then try again.
    Refresh,
    /// Wait a little, then try again in the same place.
    Wait,
    /// Push the bytes again, to the primary alone.
    PushAgain,
    /// Try another replica.
    Elsewhere,
    /// It was not done, and never will be: tell the caller.
    GiveUp,
}

/// The table: one line a code that stores and masters give.
pub fn next_after(code: Code) -> Next {
    match code {
        Code::StaleEpoch | Code::UnknownEpoch | Code::NotPrimary | Code::NotInSession => Next::Refresh,
        Code::Reconfiguring | Code::Shutdown | Code::DiskFailed | Code::NoServers => Next::Refresh,
        Code::Frozen | Code::Unavailable | Code::NotLeader => Next::Refresh,
        Code::Busy | Code::Gap => Next::Wait,
        Code::PieceMissing | Code::ChainBroken => Next::PushAgain,
        Code::Corrupt | Code::BadChecksum => Next::Elsewhere,
        _ => Next::GiveUp,
    }
}
