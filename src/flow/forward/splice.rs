//! Which connections and datagrams go from socket to socket instead of through the link (pasta).
//!
//! Those from loopback addresses of one side, to the other side: there the source is the kernel's
//! choice, so that no loopback address ever has to appear on the link.

use super::{Observed, Refusal, inbound};
use crate::config::guest::{GuestView, Translation};
use crate::config::ports::Rule;
use crate::flow::{Endpoint, FlowKey, Side};
use std::net::IpAddr;

/// What goes from socket to socket. By default nothing does, as there is no other side (passt).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Splicing {
    /// From the host's loopback addresses inwards; off with `--no-splice`.
    pub inwards: bool,
    /// To the same loopback address inside, not to the guest's own (`--host-lo-to-ns-lo`).
    pub lo_to_lo: bool,
    /// There is no link: nothing else is carried (`--splice-only`).
    pub only: bool,
}

/// Something that a listener has taken.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The side that the listener is on.
    pub side: Side,
    /// The listener's rule.
    pub rule: &'a Rule,
    /// Who has sent it.
    pub peer: Endpoint,
    /// The address and port of ours that it was sent to.
    pub local: Endpoint,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the guest through the link, as this flow.
    Link(FlowKey),
    /// To this endpoint, from a socket of the other side.
    Splice(Endpoint),
}

impl Arrival<'_> {
    /// Where this goes.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub fn destination(
        &self,
        view: &GuestView,
        translation: &Translation,
        observed: &Observed,
        splicing: Splicing,
    ) -> Result<Destination, Refusal> {
        let Self { side, rule, peer, local } = *self;
        if !(rule.first..=rule.last).contains(&local.port) {
            return Err(Refusal::NoTarget);
        }
        let splice = |addr| Destination::Splice(Endpoint::new(addr, rule.target_port(local.port)));
        if side == Side::Inside {
            let local_only = peer.addr.is_loopback() && local.addr.is_loopback();
            return if local_only {
                Ok(splice(rule.target.unwrap_or(local.addr)))
            } else {
                Err(Refusal::NotLocal)
            };
        }
        if splicing.inwards
            && peer.addr.is_loopback()
            && let Some(addr) = self.target_inside(observed, splicing.lo_to_lo)?
        {
            return Ok(splice(addr));
        }
        if splicing.only {
            return Err(Refusal::NotLocal);
        }
        inbound(view, translation, observed, rule, peer, local).map(Destination::Link)
    }

    /// Where a socket inside connects to; `None` where the link has to be taken.
    fn target_inside(
        &self,
        observed: &Observed,
        lo_to_lo: bool,
    ) -> Result<Option<IpAddr>, Refusal> {
        let local = self.local.addr;
        match self.rule.target {
            // No frame could carry that.
            Some(target) if target.is_loopback() => Ok(Some(target)),
            Some(_) => Ok(None),
            None if local.is_multicast() || (lo_to_lo && local.is_loopback()) => Ok(Some(local)),
            None => {
                // Without knowing the interface inside, a link-local address is nobody's.
                let seen = match self.peer.addr {
                    IpAddr::V4(_) => observed.v4.map(IpAddr::V4),
                    IpAddr::V6(_) => observed.v6.map(IpAddr::V6),
                };
                seen.map(Some).ok_or(Refusal::GuestUnknown)
            }
        }
    }
}
