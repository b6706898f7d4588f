complete -c passt -s l -l log-file -d 'Log to a file, not to the system log' -r -F
complete -c passt -l log-size -d 'Size that the log file never exceeds (default: 1048576)' -r -f
complete -c passt -l runas -d 'Whom to become when started as root, names or numbers (default: nobody)' -r -f
complete -c passt -s p -l pcap -d 'Capture the guest\'s frames to a file, in pcap format' -r -F
complete -c passt -s P -l pid -d 'Write the process\'s number to a file' -r -F
complete -c passt -l stats -d 'Print counters on standard error, every DELAY seconds at most; with --foreground only' -r -f
complete -c passt -s c -l conf-path -d 'Socket at which pesto may show and change forwarded ports' -r -F
complete -c passt -s s -l socket -l socket-path -d 'Socket to listen on (default: first free /tmp/passt_N.socket)' -r -F
complete -c passt -s F -l fd -d 'Use an open and connected descriptor instead; implies --one-off' -r -f
complete -c passt -l repair-path -d 'Socket of the helper for migration; only \'none\' so far' -r -F
complete -c passt -s m -l mtu -d 'MTU to advertise, 0 for none (default: 65520)' -r -f
complete -c passt -s a -l address -d 'The guest\'s address, once per IP version (default: the host\'s)' -r -f
complete -c passt -s n -l netmask -d 'IPv4 netmask, dotted or as a length (default: the host\'s)' -r -f
complete -c passt -s M -l mac-addr -d 'Our MAC address (default: 9a:55:9a:55:9a:55)' -r -f
complete -c passt -s g -l gateway -d 'Default gateway, once per IP version (default: the host\'s)' -r -f
complete -c passt -s i -l interface -d 'Interface to take addresses and routes from' -r -f
complete -c passt -s o -l outbound -d 'Source address towards the outside, once per IP version' -r -f
complete -c passt -l outbound-if4 -d 'Interface that IPv4 leaves by; its addresses are used unless --interface is given' -r -f
complete -c passt -l outbound-if6 -d 'Interface that IPv6 leaves by; its addresses are used unless --interface is given' -r -f
complete -c passt -l map-host-loopback -d 'The guest\'s name for the host\'s loopback address (default: the gateway)' -r -f
complete -c passt -l map-guest-addr -d 'The guest\'s name for its own address on the host (default: none)' -r -f
complete -c passt -s D -l dns -d 'Resolver for the guest, may be repeated (default: from resolv.conf)' -r -f
complete -c passt -l dns-forward -d 'Address at which the guest finds the host\'s resolver' -r -f
complete -c passt -l dns-host -d 'The host\'s resolver for --dns-forward (default: first of resolv.conf)' -r -f
complete -c passt -s S -l search -d 'Search domain for the guest, may be repeated (default: from resolv.conf)' -r -f
complete -c passt -s H -l hostname -d 'The guest\'s host name' -r -f
complete -c passt -l fqdn -d 'The guest\'s fully qualified domain name' -r -f
complete -c passt -s t -l tcp-ports -d 'TCP ports to forward to the guest, may be repeated (default: none): \'none\', \'all\', or [ADDR][%IFNAME/]PORT[-PORT][:[TARGET/]PORT[-PORT]], with commas, and ~PORT to leave out' -r -f
complete -c passt -s u -l udp-ports -d 'UDP ports to forward to the guest, as for --tcp-ports' -r -f
complete -c passt -s h -l help -d 'Show this text and exit'
complete -c passt -l version -d 'Show the version and exit'
complete -c passt -s d -l debug -d 'Log everything to standard error, not to the system log'
complete -c passt -l trace -d 'As --debug, and a line for every packet'
complete -c passt -s q -l quiet -d 'Log only warnings and errors'
complete -c passt -s f -l foreground -d 'Don\'t go to background once ready'
complete -c passt -s e -l stderr -d 'Deprecated, does nothing'
complete -c passt -l chroot-fallback -d 'Isolate with chroot(2) where pivot_root(2) fails, as on an initramfs'
complete -c passt -l userns-fallback -d 'Where no user namespace can be made, go on isolated by fewer means'
complete -c passt -l vhost-user -d 'Be a vhost-user back-end'
complete -c passt -s 1 -l one-off -d 'Exit when the first client goes away'
complete -c passt -l print-capabilities -d 'Print the back-end\'s capabilities as JSON and exit'
complete -c passt -l migrate-exit -d 'Deprecated, does nothing as long as there is no migration'
complete -c passt -l migrate-no-linger -d 'Deprecated, does nothing as long as there is no migration'
complete -c passt -l no-map-gw -d 'The gateway doesn\'t stand for the host'
complete -c passt -s 4 -l ipv4-only -d 'Disable IPv6'
complete -c passt -s 6 -l ipv6-only -d 'Disable IPv4'
complete -c passt -l no-dhcp-dns -d 'Don\'t hand out resolvers'
complete -c passt -l no-dhcp-search -d 'Don\'t hand out search domains'
complete -c passt -l no-tcp -d 'Disable TCP'
complete -c passt -l no-udp -d 'Disable UDP'
complete -c passt -l no-icmp -d 'Disable ICMP, ICMPv6 and NDP'
complete -c passt -l no-dhcp -d 'Disable the DHCP server'
complete -c passt -l no-dhcpv6 -d 'Disable the DHCPv6 server'
complete -c passt -l no-ndp -d 'Disable answers to neighbour and router solicitations'
complete -c passt -l no-ra -d 'Disable router advertisements'
complete -c passt -l freebind -d 'Allow to forward ports of addresses that the host doesn\'t have (yet)'
