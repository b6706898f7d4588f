//! Numbers of TCP that have rules of their own: sequence numbers, windows, scales, segment sizes.

use std::fmt;
use std::ops::{Add, AddAssign, Shl, Shr, Sub};

/// A TCP sequence number: arithmetic and order are modulo 2^32 (RFC 9293 3.4).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SeqNum(pub u32);

impl SeqNum {
    /// Whether `self` comes before `other`.
    pub const fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether `self` comes after `other`.
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// Whether `self` is `other` or comes before it.
    pub const fn before_or_eq(self, other: Self) -> bool {
        !other.before(self)
    }

    /// Whether `self` is `other` or comes after it.
    pub const fn after_or_eq(self, other: Self) -> bool {
        !self.before(other)
    }

    /// Bytes from `earlier` to `self`, modulo 2^32.
    pub const fn distance_from(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The later of the two.
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of the two.
    #[must_use]
    pub const fn min(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }
}

impl Add<u32> for SeqNum {
    type Output = Self;
    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for SeqNum {
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

impl Sub<u32> for SeqNum {
    type Output = Self;
    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

impl fmt::Debug for SeqNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A window in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowSize(pub u32);

/// A window field as it stands in a segment (RFC 9293 3.1), before scaling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnscaledWindow(pub u16);

/// The shift count of the window scale option, 0 to 14 (RFC 7323 2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowScale(u8);

impl WindowScale {
    /// The largest shift that may be used.
    pub const MAX: Self = Self(14);

    /// A shift count; more than 14 counts as 14 (RFC 7323 2.3).
    pub const fn new(shift: u8) -> Self {
        if shift > 14 { Self::MAX } else { Self(shift) }
    }

    /// The shift count.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Shl<WindowScale> for UnscaledWindow {
    type Output = WindowSize;
    fn shl(self, scale: WindowScale) -> WindowSize {
        WindowSize(u32::from(self.0) << scale.0)
    }
}

impl Shr<WindowScale> for WindowSize {
    type Output = UnscaledWindow;
    /// The field that shows at most this window: rounded down, at most 65 535.
    fn shr(self, scale: WindowScale) -> UnscaledWindow {
        UnscaledWindow(u16::try_from(self.0 >> scale.0).unwrap_or(u16::MAX))
    }
}

/// A maximum segment size: payload bytes of one segment (RFC 9293 3.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mss(pub u16);

impl Mss {
    /// What holds when the option is absent, over IPv4 (RFC 9293 3.7.1).
    pub const DEFAULT: Self = Self(536);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_wraps() {
        let a = SeqNum(u32::MAX - 1);
        let b = a + 4;
        assert!(a.before(b) && b.after(a) && b.after_or_eq(b) && a.before_or_eq(a));
        assert_eq!(b.distance_from(a), 4);
        assert_eq!(a.max(b), b);
    }

    #[test]
    fn windows_scale_and_saturate() {
        assert_eq!(UnscaledWindow(3) << WindowScale::new(8), WindowSize(768));
        assert_eq!(WindowSize(1000) >> WindowScale::new(8), UnscaledWindow(3));
        assert_eq!(WindowSize(1 << 24) >> WindowScale::new(8), UnscaledWindow(u16::MAX));
        assert_eq!(WindowScale::new(200), WindowScale::MAX);
    }
}
