"""Judges JWT-SVIDs with PyJWT, a library that knows nothing of SPIFFE.

    jwt_check.py JWKS_FILE AUDIENCE  <  one token a line

Prints `accept SUBJECT` or `refuse REASON` for each.
"""

import json
import sys

import jwt

with open(sys.argv[1], encoding="utf-8") as file:
    KEYS = {key.key_id: key for key in jwt.PyJWKSet.from_dict(json.load(file)).keys}

for line in sys.stdin:
    token = line.rstrip("\n")
    try:
        key = KEYS[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(
            token,
            key.key,
            algorithms=["RS256", "ES256", "ES384"],
            audience=sys.argv[2],
            options={"require": ["exp", "sub", "aud"]},
        )
        print("accept", claims["sub"], flush=True)
    except Exception as error:
        print("refuse", type(error).__name__, str(error).replace("\n", " "), flush=True)
