"""The operator's page in the browser, and the server behind it: a gateway between people and the seats of edges.

config.py        what the server is told          messages.py   what browsers and server say to each other
robot.py         all ways to one robot            hub.py        who has control, who may do what, what is shown
seat_link.py     the way to an edge's seat        page.py       one browser page
robot_links.py   stop and cameras                 access.py     tokens, log-ins, limits
app.py           the routes                       server.py     the process: sockets, TLS, start and end
"""
