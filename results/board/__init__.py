"""One page over many folders: a row a method, a column a suite, ranks as intervals."""
