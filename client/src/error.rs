//! Why something did not work.

use common::{Code, Refusal};

/// An error of the client library.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The cluster refuses; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer within the deadline; whether it was done is not known.
    #[error("{action}: no answer within {ms} ms; whether it was done is not known (last: {last})")]
    Unknown {
        /// What was asked.
        action: String,
        /// How long it was tried.
        ms: u64,
        /// What the last try met.
        last: String,
    },
    /// The cluster answers something else than what was asked.
    #[error("{0}: the answer does not fit the question; is the server of another version?")]
    Unexpected(&'static str),
    /// No replica gives the bytes.
    #[error("read {what}: no replica answers (last: {last})")]
    Unreadable {
        /// What was to be read.
        what: String,
        /// What the last try met.
        last: String,
    },
}

impl Error {
    pub(crate) fn unexpected(action: &'static str) -> Error {
        Error::Unexpected(action)
    }

    /// The refusal's code, if it is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }
}

impl From<Code> for Error {
    fn from(code: Code) -> Error {
        Error::Refused(code.into())
    }
}
