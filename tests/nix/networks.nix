# Networks and their machines, for the evaluation with the minimal evaluator and with NixOS.
{
  machines = {
    mail = "lan";
    web = "lan";
    # Its name does not fit into the name of an interface.
    machine-with-a-long-name = "lan";
    one = "cell";
    two = "cell";
  };
  networks = {
    lan = {
      address = "10.7.0.1/24";
      address6 = "fd00:7::1/64";
      leases = {
        # A machine that the host's configuration does not declare.
        created = { };
        mail.address = "10.7.0.20";
      };
    };
    cell = {
      address = "10.8.0.1/28";
      bridge = "microvm-cell";
      isolated = true;
      nat = false;
      nameservers = [
        "9.9.9.9"
        "2620:fe::fe"
      ];
    };
  };
}
