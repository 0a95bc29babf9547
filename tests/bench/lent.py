"""What is started in place of a node's shell: it lends its standard input and output to what plays the node.

``lent.py SOCKET NODE FUNCTION BYTES``: the function of node.sh that was to run, and how much of its standard input is
the text of node.sh.  So nothing stands between the controller's pipe and the one whose clock is read.
"""

import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as way:
    way.connect(sys.argv[1])
    socket.send_fds(way, ["\n".join(sys.argv[2:]).encode()], [0, 1])
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    way.recv(1)  # until it lets go
