//! A guest (User-mode Linux) on the vhost-user socket, against the kernel of the host.

mod common;

use common::guest::Guest;
use common::net::Lab;

#[test]
fn peer() {
    common::peer::entry();
}

#[test]
fn a_guest_obeys_and_reboots() {
    let lab = Lab::new();
    let mut guest = Guest::uml(&lab, None);
    assert_eq!(guest.run("exit 3").status, 3);
    assert_eq!(guest.ok("printf '%s\\n\\tc' 'a b'"), "a b\n\tc\n");
    guest.serve(5000);
    guest.peer("Both [::1]:5000 1000000 7");
    guest.peer("gather 127.0.0.1:5000 200");
    guest.reboot();
    guest.ok("test ! -e /run/ready.5000");
    guest.kill();
}
