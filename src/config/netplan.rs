//! What `--config-net` gives to the interface in a namespace: addresses and routes. Pure.

use super::Network;
use super::facts::{Address, HostFacts, Route};
use super::options::{InNamespace, Typed};

/// Addresses and routes for an interface. Interface numbers in here are the host's: they stand for
/// the interface in the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetPlan {
    /// Addresses, in the order in which they are added.
    pub addresses: Vec<Address>,
    /// Routes, those first that others need.
    pub routes: Vec<Route>,
}

impl NetPlan {
    /// What the namespace gets, when the host has `facts`.
    pub(super) fn new(
        typed: &Typed,
        asked: &InNamespace,
        facts: &HostFacts,
        network: &Network,
    ) -> Self {
        let _ = (typed, asked, facts, network);
        Self::default()
    }
}
