"""Faces with makeup and faces without: Makeup Transfer (MT), IPM-Net's folders, or a user's own two."""
