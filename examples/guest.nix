# A guest for all five hypervisors. It has a console with an empty root password, and a persistent volume.
{
  users.users.root.password = "";
  services.getty.helpLine = ''
    Log in as "root" with an empty password. `systemctl poweroff` ends the machine.
  '';

  microvm.volumes = [
    {
      image = "var.img";
      mountPoint = "/var";
      size = 256;
    }
  ];

  system.stateVersion = "24.05";
}
