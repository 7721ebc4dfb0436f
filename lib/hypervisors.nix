# The hypervisors, in the order of all tables. The launcher has the same list.
[
  "qemu"
  "cloud-hypervisor"
  "firecracker"
  "crosvm"
  "kvmtool"
]
