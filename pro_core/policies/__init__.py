"""Training policies, thin over TRL: PRO-WIC and RiC (`wic`), what they share, and what their online rounds are made
of."""
