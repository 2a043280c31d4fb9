package zoho

import (
	"fmt"
	"slices"
)

// Environment is the kind of org a grant was made for. It is chosen on Zoho's
// consent page and is a property of the grant; the token response can't be
// relied on to tell it (zoho-facts 1.2 and 5).
type Environment string

// The environments. Each has its own API host in every data centre.
const (
	Production Environment = "production"
	Sandbox    Environment = "sandbox"
	Developer  Environment = "developer"
)

// DataCenter is one of Zoho's data centres. Each URL is a scheme and a host,
// without a path or a slash at its end; an empty one means that Zoho has
// published no such host, and no other host is derived in its place: Canada
// shows that the names don't follow from one another.
type DataCenter struct {
	// Location is Zoho's short name, as it comes to the OAuth callback: "eu".
	Location string
	// Accounts is the server of every OAuth call of a grant of this centre.
	Accounts string
	// API is the host of production orgs.
	API string
	// Sandbox is the host of sandbox orgs.
	Sandbox string
	// Developer is the host of developer orgs.
	Developer string
}

// dataCenters is the table of zoho-facts 1.8. The first eight are in Zoho's own
// SDKs, with all of their hosts (confidence high).
//
// The United Kingdom and the United Arab Emirates are in Zoho's list of
// accounts servers but in no SDK: their API host is a single source's word
// (medium) and their sandbox and developer hosts are unknown, thus absent.
// Singapore is left out, since nothing names its API host.
var dataCenters = []DataCenter{
	{"us", "https://accounts.zoho.com", "https://www.zohoapis.com", "https://sandbox.zohoapis.com", "https://developer.zohoapis.com"},
	{"eu", "https://accounts.zoho.eu", "https://www.zohoapis.eu", "https://sandbox.zohoapis.eu", "https://developer.zohoapis.eu"},
	{"in", "https://accounts.zoho.in", "https://www.zohoapis.in", "https://sandbox.zohoapis.in", "https://developer.zohoapis.in"},
	{"au", "https://accounts.zoho.com.au", "https://www.zohoapis.com.au", "https://sandbox.zohoapis.com.au", "https://developer.zohoapis.com.au"},
	{"jp", "https://accounts.zoho.jp", "https://www.zohoapis.jp", "https://sandbox.zohoapis.jp", "https://developer.zohoapis.jp"},
	{"cn", "https://accounts.zoho.com.cn", "https://www.zohoapis.com.cn", "https://sandbox.zohoapis.com.cn", "https://developer.zohoapis.com.cn"},
	{"ca", "https://accounts.zohocloud.ca", "https://www.zohoapis.ca", "https://sandbox.zohoapis.ca", "https://developer.zohoapis.ca"},
	{"sa", "https://accounts.zoho.sa", "https://www.zohoapis.sa", "https://sandbox.zohoapis.sa", "https://developer.zohoapis.sa"},
	{"uk", "https://accounts.zoho.uk", "https://www.zohoapis.uk", "", ""},
	{"ae", "https://accounts.zoho.ae", "https://www.zohoapis.ae", "", ""},
}

// DataCenters returns the known data centres, the United States first.
func DataCenters() []DataCenter { return slices.Clone(dataCenters) }

// LookupDataCenter returns the data centre with exactly this location.
func LookupDataCenter(location string) (DataCenter, bool) {
	for _, d := range dataCenters {
		if d.Location == location {
			return d, true
		}
	}
	return DataCenter{}, false
}

// dataCenterByAccounts returns the data centre whose accounts server is exactly
// accountsServer. Anything else, down to a slash at the end, is unknown: the
// value arrives in a redirect that anybody can forge, and the client secret is
// posted to it.
func dataCenterByAccounts(accountsServer string) (DataCenter, bool) {
	for _, d := range dataCenters {
		if d.Accounts == accountsServer {
			return d, true
		}
	}
	return DataCenter{}, false
}

// Host returns the URL of the API host of an environment, or an error where
// the environment is unknown or Zoho has published no host for it.
func (d DataCenter) Host(e Environment) (string, error) {
	var host string
	switch e {
	case Production:
		host = d.API
	case Sandbox:
		host = d.Sandbox
	case Developer:
		host = d.Developer
	default:
		return "", fmt.Errorf("zoho: unknown environment %q", e)
	}
	if host == "" {
		return "", fmt.Errorf("zoho: no known API host of environment %q in data centre %q", e, d.Location)
	}
	return host, nil
}

// CheckCallback names the data centre of an OAuth callback out of its location
// and accounts-server parameters, both of which anybody can forge. It refuses
// an accounts server that isn't in the table and a location that isn't its own;
// an absent location is taken from the accounts server. Where Config replaces
// the accounts server, that one is accepted too, for any known location.
func (c *Client) CheckCallback(location, accountsServer string) (DataCenter, error) {
	if c.accounts != "" && accountsServer == c.accounts {
		if d, ok := LookupDataCenter(location); ok {
			return d, nil
		}
		return DataCenter{}, errBadLocation
	}
	d, ok := dataCenterByAccounts(accountsServer)
	if !ok || location != "" && location != d.Location {
		return DataCenter{}, errBadLocation
	}
	return d, nil
}

// knownAPIDomain reports whether a token response may name this api_domain: an
// API host of any data centre, production also without its www (zoho-facts
// 1.8), or the host that replaces them all.
func (c *Client) knownAPIDomain(domain string) bool {
	if domain == "" {
		return false
	}
	if domain == c.api {
		return true
	}
	for _, d := range dataCenters {
		if domain == d.API || domain == d.Sandbox || domain == d.Developer || domain == "https://"+d.API[len("https://www."):] {
			return true
		}
	}
	return false
}
