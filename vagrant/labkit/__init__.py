"""What the lab's tests and the demonstration share: the nodes, the guests, the audits, the proof of the records.

Nothing here uses lvmigrate: the truth is asked of virsh, drbdsetup and the guests' own records, by plain ssh.
"""
