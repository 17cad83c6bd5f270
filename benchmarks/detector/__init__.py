"""How the detector of vertebrae is trained, and how well it finds and names them."""
