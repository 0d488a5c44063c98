"""CelebAMask-HQ: CelebA-HQ's pictures with label maps drawn by hand, one file a part, merged here."""
