//! The vhost-user device.
