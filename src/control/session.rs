//! One client of the control socket: what it was told so far, and what came from it.

use crate::config::rules_wire::{
    About, Malformed, Outcome, Table, Update, emit_greeting, emit_result,
};
use crate::token::Interest;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

/// Bytes taken at a time.
const PIECE: usize = 16 << 10;

/// What has come from a client.
#[derive(Debug)]
pub(super) enum News {
    /// Nothing that matters yet.
    None,
    /// A whole update; no more is read.
    Update(Vec<Table>),
    /// What cannot be an update; no more is read.
    Malformed(Malformed),
    /// The client left without a word, or the connection failed.
    Gone,
}

/// A client's side of the conversation.
#[derive(Debug)]
pub(super) struct Session {
    /// What it is to be told, and how much of that it has.
    out: Vec<u8>,
    sent: usize,
    /// What it sends; `None` once that is complete or wrong.
    update: Option<Update>,
    /// It has its result, or will have with what is in `out`.
    finished: bool,
}

impl Session {
    /// A client that is to be shown `tables`.
    pub(super) fn new(tables: &[Table<About>]) -> Self {
        let update = Some(Update::new());
        Self { out: emit_greeting(tables), sent: 0, update, finished: false }
    }

    /// Takes what has come.
    pub(super) fn receive(&mut self, mut stream: &UnixStream) -> News {
        let Some(update) = &mut self.update else { return News::None };
        let mut piece = [0; PIECE];
        let news = match stream.read(&mut piece) {
            Ok(0) if update.has_begun() => News::Malformed(Malformed::Short),
            Ok(0) => News::Gone,
            Ok(n) => match update.push(piece.get(..n).unwrap_or_default()) {
                Ok(None) => News::None,
                Ok(Some(tables)) => News::Update(tables),
                Err(why) => News::Malformed(why),
            },
            Err(e) if is_temporary(&e) => News::None,
            Err(_) => News::Gone,
        };
        if !matches!(news, News::None) {
            self.update = None;
        }
        news
    }

    /// The client is to be told this, and then it is over.
    pub(super) fn finish(&mut self, outcome: &Outcome) {
        self.update = None;
        if !self.finished {
            self.finished = true;
            self.out.extend(emit_result(outcome));
        }
    }

    /// Sends what the client takes.
    ///
    /// # Errors
    /// It takes nothing any more.
    pub(super) fn send(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent = self.sent.saturating_add(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Whether all is said.
    pub(super) const fn is_over(&self) -> bool {
        self.finished && self.out.is_empty()
    }

    /// What the session waits for.
    pub(super) const fn interest(&self) -> Interest {
        Interest {
            readable: self.update.is_some(),
            writable: !self.out.is_empty(),
            read_closed: false,
            edge: false,
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
