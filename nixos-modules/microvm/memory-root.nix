# The root file system of a machine that keeps nothing.
{
  device = "rootfs";
  fsType = "tmpfs";
  options = [
    "size=50%"
    "mode=0755"
  ];
  neededForBoot = true;
}
