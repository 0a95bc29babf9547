"""The service: a process around `lvmigrate.cluster.Cluster` that programs and people ask over HTTP, and its client.

It holds no rule of the core's: a job is one call of the Python interface, and what a killed service has left is led
to its end by the same cleanup that anybody may run.  Whatever it needs beyond the core is the extra
``lvmigrate[service]``; nothing imports it before a command asks for it.
"""
