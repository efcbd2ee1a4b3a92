"""How bytes cross a link on which plain TCP starves."""
