complete -c pasta -s l -l log-file -d 'Log to a file, not to the system log' -r -F
complete -c pasta -l log-size -d 'Size that the log file never exceeds (default: 1048576)' -r -f
complete -c pasta -l runas -d 'Whom to become when started as root, names or numbers (default: nobody)' -r -f
complete -c pasta -s p -l pcap -d 'Capture the namespace\'s frames to a file, in pcap format' -r -F
complete -c pasta -s P -l pid -d 'Write the process\'s number to a file' -r -F
complete -c pasta -l stats -d 'Print counters on standard error, every DELAY seconds at most; with --foreground only' -r -f
complete -c pasta -s c -l conf-path -d 'Socket at which pesto may show and change forwarded ports' -r -F
complete -c pasta -s F -l fd -d 'Serve the tap that this open descriptor is of, instead of making one; exit when it goes' -r -f
complete -c pasta -s m -l mtu -d 'MTU to advertise, 0 for none (default: 65520)' -r -f
complete -c pasta -s a -l address -d 'The namespace\'s address, once per IP version (default: the host\'s)' -r -f
complete -c pasta -s n -l netmask -d 'IPv4 netmask, dotted or as a length (default: the host\'s)' -r -f
complete -c pasta -s M -l mac-addr -d 'Our MAC address (default: 9a:55:9a:55:9a:55)' -r -f
complete -c pasta -s g -l gateway -d 'Default gateway, once per IP version (default: the host\'s)' -r -f
complete -c pasta -s i -l interface -d 'Interface to take addresses and routes from' -r -f
complete -c pasta -s o -l outbound -d 'Source address towards the outside, once per IP version' -r -f
complete -c pasta -l outbound-if4 -d 'Interface that IPv4 leaves by; its addresses are used unless --interface is given' -r -f
complete -c pasta -l outbound-if6 -d 'Interface that IPv6 leaves by; its addresses are used unless --interface is given' -r -f
complete -c pasta -l map-host-loopback -d 'The namespace\'s name for the host\'s loopback address (default: the gateway)' -r -f
complete -c pasta -l map-guest-addr -d 'The namespace\'s name for its own address on the host (default: none)' -r -f
complete -c pasta -s D -l dns -d 'Resolver for the namespace, may be repeated (default: from resolv.conf)' -r -f
complete -c pasta -l dns-forward -d 'Address at which the namespace finds the host\'s resolver' -r -f
complete -c pasta -l dns-host -d 'The host\'s resolver for --dns-forward (default: first of resolv.conf)' -r -f
complete -c pasta -s S -l search -d 'Search domain for the namespace, may be repeated (default: from resolv.conf)' -r -f
complete -c pasta -s H -l hostname -d 'The namespace\'s host name' -r -f
complete -c pasta -l fqdn -d 'The namespace\'s fully qualified domain name' -r -f
complete -c pasta -s t -l tcp-ports -d 'TCP ports to forward to the namespace, may be repeated (default: auto): \'none\', \'all\', \'auto\' for those that are listened on, or [ADDR][%IFNAME/]PORT[-PORT][:[TARGET/]PORT[-PORT]], with commas, and ~PORT to leave out' -r -f
complete -c pasta -s u -l udp-ports -d 'UDP ports to forward to the namespace, as for --tcp-ports' -r -f
complete -c pasta -s T -l tcp-ns -d 'TCP ports of the namespace\'s loopback interface to forward to the host\'s, as for --tcp-ports but without an address to listen on (default: auto)' -r -f
complete -c pasta -s U -l udp-ns -d 'UDP ports to forward to the host, as for --tcp-ns' -r -f
complete -c pasta -s I -l ns-ifname -d 'Name of the interface in the namespace (default: the host\'s, or else tap0)' -r -f
complete -c pasta -l ns-mac-addr -d 'MAC address of the interface in the namespace (default: random)' -r -f
complete -c pasta -l userns -d 'User namespace to join (default: a new one, or the process\'s)' -r -F
complete -c pasta -l netns -d 'Network namespace to join, by path or by its name under /run/netns' -r -F
complete -c pasta -s h -l help -d 'Show this text and exit'
complete -c pasta -l version -d 'Show the version and exit'
complete -c pasta -s d -l debug -d 'Log everything to standard error, not to the system log'
complete -c pasta -l trace -d 'As --debug, and a line for every packet'
complete -c pasta -s q -l quiet -d 'Log only warnings and errors'
complete -c pasta -s f -l foreground -d 'Don\'t go to background once ready'
complete -c pasta -s e -l stderr -d 'Deprecated, does nothing'
complete -c pasta -l chroot-fallback -d 'Isolate with chroot(2) where pivot_root(2) fails, as on an initramfs'
complete -c pasta -l userns-fallback -d 'With --fd alone: where no user namespace can be made, go on isolated by fewer means'
complete -c pasta -l no-map-gw -d 'The gateway doesn\'t stand for the host'
complete -c pasta -s 4 -l ipv4-only -d 'Disable IPv6'
complete -c pasta -s 6 -l ipv6-only -d 'Disable IPv4'
complete -c pasta -l dhcp-dns -d 'Hand out resolvers by DHCP, DHCPv6 and NDP'
complete -c pasta -l dhcp-search -d 'Hand out search domains by DHCP, DHCPv6 and NDP'
complete -c pasta -l no-tcp -d 'Disable TCP'
complete -c pasta -l no-udp -d 'Disable UDP'
complete -c pasta -l no-icmp -d 'Disable ICMP, ICMPv6 and NDP'
complete -c pasta -l no-dhcp -d 'Disable the DHCP server'
complete -c pasta -l no-dhcpv6 -d 'Disable the DHCPv6 server'
complete -c pasta -l no-ndp -d 'Disable answers to neighbour and router solicitations'
complete -c pasta -l no-ra -d 'Disable router advertisements'
complete -c pasta -l freebind -d 'Allow to forward ports of addresses that the host doesn\'t have (yet)'
complete -c pasta -l netns-only -d 'Neither join nor create a user namespace (default with --netns and no --userns)'
complete -c pasta -l no-netns-quit -d 'Don\'t exit when the namespace that was joined disappears'
complete -c pasta -l config-net -d 'Configure the interface in the namespace: up, with addresses and routes; implies --no-ra'
complete -c pasta -l no-copy-routes -d 'Deprecated: no routes but the default one, with --config-net; --gateway does the same'
complete -c pasta -l no-copy-addrs -d 'Deprecated: one address of each IP version, with --config-net; --address does the same'
complete -c pasta -l host-lo-to-ns-lo -d 'Connections to the host\'s loopback address reach the namespace\'s'
complete -c pasta -l no-splice -d 'No direct path for connections to the host\'s loopback address'
complete -c pasta -l splice-only -d 'Only the direct path between loopback addresses: no interface in the namespace'
