"""What fills the pages with measured numbers and the command line, and builds the site."""
