//! Room for new exchanges: a guest that asks thousands of ports, of which none answers, holds a
//! socket for each until it times out. When there are no more, the oldest that nobody has answered
//! makes way, so that the next question may be asked.

use super::{Datagrams, Flow};
use crate::engine::Ctx;
use crate::engine::counters::DropReason;
use crate::flow::FlowId;
use crate::flow::table::Table;
use std::collections::VecDeque;
use std::io;

/// Names kept beyond twice the flows that there are.
const SPARE: usize = 64;

/// Flows in the order in which they began. Some have been answered, or are gone.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    queue: VecDeque<FlowId>,
}

impl Unanswered {
    /// A flow has begun, which is in `table`.
    pub(super) fn add<D>(&mut self, id: FlowId, table: &Table<Flow<D>>) {
        if self.queue.len() >= 2 * table.len() + SPARE {
            self.queue.retain(|&old| is_unanswered(table, old));
        }
        self.queue.push_back(id);
    }

    /// Takes out the oldest that may make way.
    fn take<D>(&mut self, table: &Table<Flow<D>>) -> Option<FlowId> {
        while let Some(&id) = self.queue.front() {
            if table.get(id).is_some_and(|(_, flow)| flow.touched) {
                return None; // its datagrams are about to be sent, and so it is with those behind
            }
            self.queue.pop_front();
            if is_unanswered(table, id) {
                return Some(id);
            }
        }
        None
    }
}

fn is_unanswered<D>(table: &Table<Flow<D>>, id: FlowId) -> bool {
    table.get(id).is_some_and(|(_, flow)| flow.life.is_unanswered())
}

impl<D: std::fmt::Debug> Datagrams<D> {
    /// What `open` opens for a new flow of the name that it is given. Where the table or the
    /// descriptors are full, an unanswered flow makes way and `open` is asked again.
    pub(super) fn open_with_room<H, K, T>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        mut open: impl FnMut(&mut Ctx<'_, H, K>, FlowId) -> io::Result<T>,
    ) -> Result<io::Result<T>, DropReason> {
        let outcome = match self.table.next_id().map(|id| open(ctx, id)) {
            None => Err(DropReason::TableFull),
            Some(Err(e)) if is_short(&e) => Ok(Err(e)),
            Some(outcome) => return Ok(outcome),
        };
        let Some(old) = self.unanswered.take(&self.table) else {
            return outcome;
        };
        self.close(ctx, old);
        ctx.shared.drop(DropReason::MadeWay);
        let id = self.table.next_id().ok_or(DropReason::TableFull)?;
        Ok(open(ctx, id))
    }
}

/// Whether there are no more descriptors.
fn is_short(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::table::FlowHasher;

    #[test]
    fn names_of_flows_that_are_over_do_not_pile_up() {
        let table: Table<Flow<()>> = Table::new(4, FlowHasher::new([0; 16]));
        let mut unanswered = Unanswered::default();
        let Some(id) = table.next_id() else { panic!("there is room") };
        for _ in 0..1000 {
            unanswered.add(id, &table);
        }
        assert!(unanswered.queue.len() <= SPARE);
        assert_eq!(unanswered.take(&table), None);
    }
}
