"""The fleet's TUF repository: who may say what devices run. Knows releases, keys and metadata; no devices.

keys        private keys in files, encrypted; never in the database
repository  metadata in the database: staged, signed, published once its threshold is met, served
ceremony    what people decide with offline keys: first keys, publishers, rotation, revocation, signing
vouched     what that says of releases: which are signed, which are revoked
"""
