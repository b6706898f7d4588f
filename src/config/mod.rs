//! Configuration: values only. What was typed becomes a validated, immutable `Config`.

pub mod facts;
pub mod guest;
pub mod options;
pub mod ports;
pub mod resolv;
pub mod template;
