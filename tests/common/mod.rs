//! What tests share: the other sides of our seams.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part of this")]

pub mod checks;
pub mod driver;
pub mod frontend;
pub mod guest;
pub mod net;
pub mod packets;
pub mod pasta;
pub mod peer;
pub mod rig;
pub mod script_host;
pub mod script_link;
pub mod sim;
pub mod sim_host;
pub mod sim_link;
pub mod smol;
pub mod tapped;
