//! Feature bits: which we offer, and what the driver's choice means.

/// One feature bit as a mask.
const fn bit(n: u32) -> u64 {
    1 << n
}

// virtio 1.3 5.1.3: network device.
/// The driver may send partial checksums.
pub const CSUM: u64 = bit(0);
/// The driver takes partial checksums.
pub const GUEST_CSUM: u64 = bit(1);
/// The configuration space holds an MTU.
pub const MTU: u64 = bit(3);
/// The driver takes segmented TCP over IPv4.
pub const GUEST_TSO4: u64 = bit(7);
/// The driver takes segmented TCP over IPv6.
pub const GUEST_TSO6: u64 = bit(8);
/// The driver may send segmented TCP over IPv4.
pub const HOST_TSO4: u64 = bit(11);
/// The driver may send segmented TCP over IPv6.
pub const HOST_TSO6: u64 = bit(12);
/// One frame to the guest may fill several receive buffers.
pub const MRG_RXBUF: u64 = bit(15);
/// The configuration space holds a link status.
pub const STATUS: u64 = bit(16);
/// The driver takes segmented UDP over IPv4.
pub const GUEST_USO4: u64 = bit(54);
/// The driver takes segmented UDP over IPv6.
pub const GUEST_USO6: u64 = bit(55);
/// The driver may send segmented UDP.
pub const HOST_USO: u64 = bit(56);

// virtio 1.3 6: every device.
/// Descriptors may point to tables of descriptors.
pub const INDIRECT_DESC: u64 = bit(28);
/// Notifications are asked for by index.
pub const EVENT_IDX: u64 = bit(29);
/// The device follows virtio 1.0 or later: little endian, 12-byte header. We know nothing else.
pub const VERSION_1: u64 = bit(32);

/// vhost-user: [`VhostUserProtocolFeatures`](vhost::vhost_user::VhostUserProtocolFeatures) exist.
pub const PROTOCOL_FEATURES: u64 = bit(30);

/// All that we can honour; [`MTU`] only when there is one to tell.
pub const ALL: u64 = CSUM
    | GUEST_CSUM
    | MTU
    | GUEST_TSO4
    | GUEST_TSO6
    | HOST_TSO4
    | HOST_TSO6
    | MRG_RXBUF
    | STATUS
    | GUEST_USO4
    | GUEST_USO6
    | HOST_USO
    | INDIRECT_DESC
    | EVENT_IDX
    | VERSION_1
    | PROTOCOL_FEATURES;

/// The features in force: what the driver acknowledged, less what makes no sense alone
/// (virtio 1.3 5.1.3.1: segmentation needs checksums of the same direction).
pub(super) const fn effective(acknowledged: u64) -> u64 {
    let mut features = acknowledged;
    if features & CSUM == 0 {
        features &= !(HOST_TSO4 | HOST_TSO6 | HOST_USO);
    }
    if features & GUEST_CSUM == 0 {
        features &= !(GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6);
    }
    features
}
