package zohotest

import (
	"fmt"
	"strings"
	"time"
)

var (
	demoFirst    = []string{"Amara", "Björn", "Chiara", "Dev", "Elif", "Farid", "Grace", "Hiro", "Ines", "Jakub"}
	demoLast     = []string{"Okafor", "Lindqvist", "Rossi", "Sharma", "Yılmaz", "Haddad", "Mbeki", "Tanaka", "Costa", "Nowak"}
	demoAccounts = []string{
		"Northwind Tea", "Kestrel Robotics", "Blue Harbour Foods", "Alder & Sons", "Meridian Textiles", "Quarry Lane Studios",
		"Saffron Travel", "Tidewater Energy", "Umbra Optics", "Vantage Cycles", "Willow Health", "Zephyr Airships",
	}
	demoStages  = []string{"Qualification", "Needs Analysis", "Value Proposition", "Negotiation/Review", "Closed Won", "Closed Lost"}
	demoSources = []string{"Trade Show", "Web Download", "Cold Call", "Employee Referral", "Partner"}
)

// The people whom SeedPeople adds beside those of the org.
const (
	DemoColleague = "5725767000000411002" // another user of the same org
	DemoEuropean  = "5725767000000511001" // a user of an org in Europe
	DemoEUOrg     = "20078233816"
)

// SeedPeople adds a colleague to the org, and an org in Europe with a user: what
// it takes to try connections by hand.
func (s *Server) SeedPeople(orgID string) {
	s.AddUser(User{ID: DemoColleague, Email: "grace@example.com", Name: "Grace Hopper", OrgID: orgID})
	s.AddOrg(Org{ID: DemoEUOrg, Name: "Northwind Europe BV", Concurrency: 15, SubConcurrency: 10, Edition: "professional"})
	s.AddUser(User{ID: DemoEuropean, Email: "elif@example.eu", Name: "Elif Yılmaz", OrgID: DemoEUOrg, Location: "eu"})
	s.SeedDemo(DemoEUOrg)
}

// SeedDemo fills an org with 12 accounts, 20 contacts, 24 leads and 15 deals that
// belong together, the same every time, and makes the usual fields mandatory.
func (s *Server) SeedDemo(orgID string) {
	for module, fields := range map[string][]string{
		"Leads": {"Last_Name"}, "Contacts": {"Last_Name"}, "Accounts": {"Account_Name"}, "Deals": {"Deal_Name", "Stage"},
	} {
		s.SetMandatory(orgID, module, fields...)
	}
	host := func(company string) string {
		return strings.ToLower(strings.NewReplacer(" ", "", "&", "").Replace(company)) + ".example"
	}
	mail := func(first, last, company string) string {
		plain := strings.NewReplacer("ö", "o", "ı", "i", " ", "").Replace(first + "." + last)
		return strings.ToLower(plain) + "@" + host(company)
	}

	accounts := make([]map[string]any, len(demoAccounts))
	for i, name := range demoAccounts {
		accounts[i] = map[string]any{
			"Account_Name": name, "Website": "https://" + host(name), "Phone": fmt.Sprintf("+1 555 01%02d", i),
			"Industry": []string{"Retail", "Manufacturing", "Services"}[i%3], "Employees": 20 + 35*i, "Annual_Revenue": 250_000 * (i + 1),
		}
	}
	link := func(ids []string, names []string, i int) map[string]any {
		return map[string]any{"id": ids[i], "name": names[i]}
	}
	accountIDs := s.Seed(orgID, "Accounts", accounts...)

	contacts, people := make([]map[string]any, 20), make([]string, 20)
	for i := range contacts {
		first, last, account := demoFirst[i%10], demoLast[(i*3+i/10)%10], i%len(demoAccounts)
		people[i] = first + " " + last
		contacts[i] = map[string]any{
			"First_Name": first, "Last_Name": last, "Full_Name": people[i], "Email": mail(first, last, demoAccounts[account]),
			"Phone": fmt.Sprintf("+1 555 02%02d", i), "Account_Name": link(accountIDs, demoAccounts, account),
			"Lead_Source": demoSources[i%len(demoSources)],
		}
	}
	contactIDs := s.Seed(orgID, "Contacts", contacts...)

	leads := make([]map[string]any, 24)
	for i := range leads {
		first, last := demoFirst[(i*7+3)%10], demoLast[(i+i/10)%10]
		company := demoLast[(i*3)%10] + " " + []string{"Logistics", "Media", "Farms"}[i%3]
		leads[i] = map[string]any{
			"First_Name": first, "Last_Name": last, "Full_Name": first + " " + last, "Company": company,
			"Email": mail(first, last, company), "Phone": fmt.Sprintf("+1 555 03%02d", i),
			"Lead_Source": demoSources[i%len(demoSources)],
			"Lead_Status": []string{"Not Contacted", "Attempted to Contact", "Contacted"}[i%3],
		}
	}
	s.Seed(orgID, "Leads", leads...)

	deals := make([]map[string]any, 15)
	for i := range deals {
		contact := (i * 4) % len(contacts)
		account := contact % len(demoAccounts)
		deals[i] = map[string]any{
			"Deal_Name": demoAccounts[account] + fmt.Sprintf(" %d", 100+i), "Stage": demoStages[i%len(demoStages)],
			"Amount": 1_500 * (i + 1), "Account_Name": link(accountIDs, demoAccounts, account),
			"Contact_Name": link(contactIDs, people, contact),
			"Closing_Date": s.now().AddDate(0, 0, 7*(i+1)).Format(time.DateOnly),
		}
	}
	s.Seed(orgID, "Deals", deals...)
}
