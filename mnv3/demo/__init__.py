"""A network as a web page that anyone can open: `mnv3 demo`."""
