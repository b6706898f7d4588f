complete -c pesto -s C -l clear -d 'Delete all rules of a table: HOST or SPLICE' -r -f
complete -c pesto -s t -l tcp-ports -d 'TCP ports to forward to the guest or namespace, as passt and pasta take them' -r -f
complete -c pesto -s u -l udp-ports -d 'UDP ports to forward to the guest or namespace' -r -f
complete -c pesto -s T -l tcp-ns -d 'TCP ports to forward from the namespace to the host; pasta only' -r -f
complete -c pesto -s U -l udp-ns -d 'UDP ports to forward from the namespace to the host; pasta only' -r -f
complete -c pesto -s h -l help -d 'Show this text and exit'
complete -c pesto -l version -d 'Show the version and exit'
complete -c pesto -s d -l debug -d 'Say on standard error what is exchanged'
complete -c pesto -s s -l show -d 'Print the rules before and after a change'
complete -c pesto -s A -l add -d 'Add the ports that follow; without it the first ones for a table replace its rules'
complete -c pesto -s D -l delete -d 'Delete the ports that follow; each must be a rule, with all that belongs to it'
