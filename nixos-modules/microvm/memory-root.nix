# The root file system of a machine without persistent state.
{
  device = "rootfs";
  fsType = "tmpfs";
  options = [
    "size=50%"
    "mode=0755"
  ];
  neededForBoot = true;
}
