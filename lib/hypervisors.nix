# The hypervisors, in the order of every table; the launcher knows the same five.
[
  "qemu"
  "cloud-hypervisor"
  "firecracker"
  "crosvm"
  "kvmtool"
]
