//! One client's session: what the VMM has negotiated and set up, as the `vhost` crate's request
//! handler.
//!
//! While messages are handled, the session holds both queues (the halves of the link lend them);
//! frames do not pass meanwhile. It answers requests; which messages get here at all is `gate`'s
//! business, and which errors end the session `mod`'s.

use super::features;
use super::memory::{MAX_REGIONS, Memory, RegionSpec};
use super::queue::{Kick, Queue, Signal};
use super::{Complaints, KICK, Settings};
use crate::sys::epoll::Epoll;
use crate::token::Token;
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

/// Rings: to the guest (0) and from it (1).
pub(super) const QUEUES: usize = 2;

/// Protocol features that we honour. MQ, LOG_SHMFD and DEVICE_STATE are to come.
pub(super) const PROTOCOL_FEATURES: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::REPLY_ACK
        .union(VhostUserProtocolFeatures::MTU)
        .union(VhostUserProtocolFeatures::BACKEND_REQ)
        .union(VhostUserProtocolFeatures::CONFIG)
        .union(VhostUserProtocolFeatures::RESET_DEVICE)
        .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// Bytes of the configuration space that we answer for; what follows the fields reads as zero.
const CONFIG_SPACE: usize = 256;

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// The state of a connection.
#[derive(Debug)]
pub(super) struct Session {
    epoll: Rc<Epoll>,
    settings: Settings,
    /// What SET_FEATURES last carried, accepted or not.
    asked: u64,
    /// The features in force; 0 before SET_FEATURES, and after one that was refused.
    features: u64,
    protocol: u64,
    memory: Arc<Memory>,
    /// Kept so that the front-end's end stays open: user-mode Linux 6.1 asks for its interrupt
    /// only when it could set this channel up.
    backend: Option<Channel>,
    /// How often a ring was not in memory.
    misplaced: Complaints,
    /// Both queues, while a message is handled.
    pub queues: [Queue; QUEUES],
}

/// The channel for requests of ours.
struct Channel(#[expect(dead_code, reason = "kept open; nothing is asked yet")] Backend);

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channel")
    }
}

impl Session {
    pub(super) fn new(epoll: Rc<Epoll>, settings: Settings) -> Self {
        Self {
            epoll,
            settings,
            asked: 0,
            features: 0,
            protocol: 0,
            memory: Arc::default(),
            backend: None,
            misplaced: Complaints::default(),
            queues: <[Queue; QUEUES]>::default(),
        }
    }

    /// Whether the VMM has taken memory away without saying so.
    pub(super) fn has_lost_memory(&self) -> bool {
        self.memory.is_lost()
    }

    /// The features in force.
    pub(super) const fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features in force.
    pub(super) const fn has_protocol(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol & feature.bits() != 0
    }

    /// Whether SET_FEATURES has carried [`features::PROTOCOL_FEATURES`], as the `vhost` crate sees
    /// it.
    pub(super) const fn knows_protocol_features(&self) -> bool {
        self.asked & features::PROTOCOL_FEATURES != 0
    }

    /// SET_VRING_ENABLE, which may come at any time.
    pub(super) fn enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.enabled = enable;
        Ok(())
    }

    /// What we offer.
    fn offered(&self) -> u64 {
        let mut offered = features::ALL & self.settings.features;
        if self.settings.mtu.is_none() {
            offered &= !features::MTU;
        }
        offered
    }

    fn offered_protocol(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES
            & VhostUserProtocolFeatures::from_bits_truncate(self.settings.protocol_features)
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue> {
        self.queues.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// Finds ring `index` in memory, after a change of something it depends on.
    fn attach(&mut self, index: u32) -> Result<()> {
        let usable = self.features & features::VERSION_1 != 0;
        let memory = Arc::clone(&self.memory);
        let found = self.queue(index)?.attach(&memory, usable);
        if found { Ok(()) } else { Err(Error::InvalidParam) }
    }

    /// Finds all rings in memory; a ring that is no longer there is broken, which is not the fault
    /// of the message that moved it.
    fn attach_all(&mut self) {
        for index in 0..QUEUES as u32 {
            if self.attach(index).is_err() && self.misplaced.admit() {
                log::warn!("vhost-user: ring {index} is not in shared memory");
            }
        }
    }

    fn set_memory(&mut self, memory: Memory) {
        log::debug!("vhost-user: {} memory regions", memory.len());
        self.memory = Arc::new(memory);
        self.attach_all();
    }

    fn reset_rings(&mut self) {
        for queue in &mut self.queues {
            queue.reset();
        }
    }

    /// The configuration space (virtio 1.3 5.1.4).
    fn config(&self) -> [u8; CONFIG_SPACE] {
        let mut config = [0; CONFIG_SPACE];
        let mut put = |at: usize, value: u16| {
            if let Some(place) = config.get_mut(at..at + 2) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        };
        put(6, LINK_UP);
        put(8, 1); // max_virtqueue_pairs
        put(10, self.settings.mtu.unwrap_or(0));
        config
    }
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        size: region.memory_size,
        vmm: region.user_addr,
        offset: region.mmap_offset,
    }
}

const fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not supported"))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Obsolete, but some front-ends (cloud-hypervisor) send it at a reset of the guest.
    fn reset_owner(&mut self) -> Result<()> {
        self.reset_rings();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset_rings();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, asked: u64) -> Result<()> {
        self.asked = asked;
        let refused = asked & !self.offered() != 0 || asked & features::VERSION_1 == 0;
        self.features = if refused { 0 } else { features::effective(asked) };
        for queue in &mut self.queues {
            queue.event_idx = self.features & features::EVENT_IDX != 0;
            queue.indirect = self.features & features::INDIRECT_DESC != 0;
            // Without protocol features there is no SET_VRING_ENABLE: rings are born enabled.
            queue.enabled |= !refused && asked & features::PROTOCOL_FEATURES == 0;
        }
        self.attach_all();
        if refused { Err(Error::InvalidParam) } else { Ok(()) }
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut memory = Memory::default();
        for (region, file) in regions.iter().zip(files) {
            memory = memory.with(spec(region), file).map_err(refuse)?;
        }
        self.set_memory(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() {
            return Err(Error::InvalidParam);
        }
        self.queue(index)?.layout.size = size;
        self.attach(index)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let layout = &mut self.queue(index)?.layout;
        (layout.descriptors, layout.available, layout.used) = (descriptors, available, used);
        self.attach(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.queue(index)?.set_base(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        // An error would leave the front-end waiting for a reply: end the session instead.
        let queue = self.queue(index).map_err(|_| Error::InvalidMessage)?;
        queue.stop();
        Ok(VhostUserVringState::new(index, u32::from(queue.base())))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let epoll = Rc::clone(&self.epoll);
        let queue = self.queue(u32::from(index))?;
        // Without a descriptor the ring would have to be polled, which we do not do.
        let file = fd.ok_or(Error::InvalidParam)?;
        // The old one first: the VMM may hand us the same open file again.
        queue.kick = None;
        let token = Token::Link(KICK + u32::from(index));
        queue.kick = Some(Kick::new(file, &epoll, token).map_err(Error::ReqHandlerError)?);
        self.attach(u32::from(index))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(u32::from(index))?;
        queue.call = fd.map(Signal::new).transpose().map_err(Error::ReqHandlerError)?;
        if let Some(call) = &queue.call {
            // What the last back-end used, and could not tell of any more, is told of now.
            call.raise();
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(u32::from(index))?;
        queue.err = fd.map(Signal::new).transpose().map_err(Error::ReqHandlerError)?;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.offered_protocol())
    }

    fn set_protocol_features(&mut self, asked: u64) -> Result<()> {
        // REPLY_ACK is the crate's own and always offered.
        let offered = self.offered_protocol() | VhostUserProtocolFeatures::REPLY_ACK;
        self.protocol = asked & offered.bits();
        if self.protocol == asked { Ok(()) } else { Err(Error::InvalidParam) }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.enable(index, enable)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let end = offset.checked_add(size).ok_or(Error::InvalidParam)?;
        let config = self.config();
        let part = config.get(offset as usize..end as usize).ok_or(Error::InvalidParam)?;
        Ok(part.to_vec())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported() // with VERSION_1 the device's configuration is read-only
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        self.backend = Some(Channel(backend));
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let memory = self.memory.with(spec(region), file).map_err(refuse)?;
        self.set_memory(memory);
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory.without(spec(region)).map_err(refuse)?;
        self.set_memory(memory);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported()
    }
}

fn refuse(error: super::memory::RegionError) -> Error {
    log::debug!("vhost-user: memory region refused: {error:?}");
    Error::InvalidParam
}
